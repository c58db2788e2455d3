//! Lists the targets for `cargo xtask soak fuzz`: name, tab, longest input.

fn main() {
    for target in breakglass_fuzz::TARGETS {
        println!("{}\t{}", target.name, target.max_len);
    }
}
