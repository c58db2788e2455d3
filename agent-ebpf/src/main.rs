//! The kernel side of Breakglass: what is recorded, and the refusal to run what cannot be. See `docs/KERNEL.md`.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod chunk;
mod descriptor;
mod emit;
mod fault;
mod guard;
mod life;
mod path;
mod probes;
mod refuse;
mod scope;
mod scratch;
mod stdio;
mod task;
mod terminal;

/// The programs that load read-only kernel memory through tracing helpers need a GPL-compatible license.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // No panic survives to the object: the verifier refuses this loop, and the build with it.
    loop {}
}
