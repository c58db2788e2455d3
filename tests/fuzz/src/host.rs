//! What the agent reads from the host that it runs on.

use breakglass_agent::kernel::btf::Btf;

/// The kernel's type information: an answer is the same at every asking, and lies in what can be addressed.
pub fn btf(input: &[u8]) {
    let Ok(btf) = Btf::parse(input.to_vec()) else { return };
    for path in ["pid", "tgid", "len", "both", "ns.inum", "ns2.inum", "cred", "cols", "flags", "bits"] {
        let Ok(found) = btf.member("outer", path) else { continue };
        assert_eq!(btf.member("outer", path).ok(), Some(found), "another answer to the same question");
        assert!(found.offset.checked_add(found.size).is_some(), "a member beyond four gigabytes");
    }
}
