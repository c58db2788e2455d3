//! Changes as sentences, and how much they matter.

use breakglass_api::v1::left_behind::{Category, Kind, Severity};

use super::{snapshot::Item, text::printable};

/// A category's name for people.
pub(super) fn category_word(category: Category) -> &'static str {
    match category {
        Category::Unspecified => "several categories",
        Category::User => "users",
        Category::Group => "groups",
        Category::Password => "passwords",
        Category::Sudoers => "sudoers",
        Category::AuthorizedKey => "authorized keys",
        Category::Ssh => "ssh configuration",
        Category::Pam => "PAM configuration",
        Category::Systemd => "systemd units",
        Category::Cron => "cron",
        Category::AtJob => "at jobs",
        Category::Loader => "loader configuration",
        Category::Profile => "shell profiles",
        Category::Startup => "startup scripts",
        Category::ModuleConfig => "module configuration",
        Category::Sysctl => "kernel settings",
        Category::Udev => "udev rules",
        Category::Packages => "package manager configuration",
        Category::Autostart => "desktop autostart",
        Category::Polkit => "polkit rules",
        Category::NameService => "name service configuration",
        Category::RemoteAccess => "remote access lists",
        Category::PrivilegedFile => "files with special rights",
        Category::Socket => "listening sockets",
        Category::KernelModule => "kernel modules",
        Category::Bpf => "BPF pins",
        Category::Mount => "mounts",
        Category::Firewall => "firewall",
        Category::Linger => "lingering users",
        Category::Boot => "boot configuration",
        Category::Trust => "trusted certificate authorities",
    }
}

/// What the difference is.
pub(super) fn sentence(kind: Kind, item: &Item, before: Option<&Item>, after: Option<&Item>) -> String {
    let (before, after) = (facts_of(before), facts_of(after));
    let now = if after.is_empty() { before } else { after };
    let subject = subject(item, now);
    let known = parenthesised(shown_facts(item, now));
    match kind {
        Kind::Added => format!("{}{}{known}", added(item, &subject), place(item)),
        Kind::Removed => format!("{subject}{} {}{known}", place(item), gone(item)),
        Kind::Changed | Kind::Unspecified => {
            format!("{subject}{} changed: {}", place(item), difference(item, before, after))
        }
    }
}

fn facts_of(item: Option<&Item>) -> &[String] {
    item.map(|item| item.facts.as_slice()).unwrap_or_default()
}

/// What the change is of.
fn subject(item: &Item, facts: &[String]) -> String {
    let (key, part) = (printable(&item.key), &item.part);
    let first = facts.first().map(String::as_str).unwrap_or_default();
    match (item.category(), part.is_empty()) {
        (Category::User, false) => format!("user {part}"),
        (Category::Group, false) => format!("group {part}"),
        (Category::Password, false) => format!("password entry of {part}"),
        (Category::AuthorizedKey, false) if part.starts_with("SHA256:") => format!("authorized key {part} {first}"),
        (Category::AuthorizedKey, false) => format!("{part} {first}"),
        (Category::Firewall, false) => format!("firewall table {part}"),
        (Category::Socket, _) => format!("listening socket {key}"),
        (_, false) => format!("{} line `{part}`", noun(item.category())),
        (Category::PrivilegedFile, true) => format!("{first} file {key}"),
        (Category::KernelModule, true) => format!("kernel module {key}"),
        (Category::Mount, true) => format!("mount on {key}"),
        (category, true) => format!("{} {key}", noun(category)),
    }
}

/// What a file of a category is called.
fn noun(category: Category) -> &'static str {
    match category {
        Category::User => "user database",
        Category::Group => "group database",
        Category::Password => "password database",
        Category::Sudoers => "sudoers",
        Category::AuthorizedKey => "authorized keys file",
        Category::Systemd => "systemd unit or setting",
        Category::AtJob => "at job",
        Category::Loader => "loader",
        Category::Profile => "shell profile",
        Category::Startup => "startup script or setting",
        Category::Sysctl => "kernel setting",
        Category::Udev => "udev rule",
        Category::Autostart => "autostart entry",
        Category::Polkit => "polkit rule",
        Category::RemoteAccess => "remote access list",
        Category::Bpf => "BPF pin",
        Category::Firewall => "firewall configuration",
        Category::Linger => "linger mark",
        Category::Trust => "trusted certificate authority",
        Category::Unspecified
        | Category::Ssh
        | Category::Pam
        | Category::Cron
        | Category::ModuleConfig
        | Category::Packages
        | Category::NameService
        | Category::PrivilegedFile
        | Category::Socket
        | Category::KernelModule
        | Category::Mount
        | Category::Boot => category_word(category),
    }
}

/// In which file, where the subject does not say.
fn place(item: &Item) -> String {
    let in_file = match item.category() {
        Category::User | Category::Group | Category::Password | Category::Socket | Category::Firewall => false,
        _ => !item.part.is_empty(),
    };
    if in_file { format!(" in {}", printable(&item.key)) } else { String::new() }
}

fn added(item: &Item, subject: &str) -> String {
    match (item.category(), item.part.is_empty()) {
        (Category::User | Category::Group | Category::Password, false) => format!("{subject} added"),
        (Category::Socket, _) | (_, true) => format!("{subject} appeared"),
        (_, false) => format!("new {subject}"),
    }
}

fn gone(item: &Item) -> &'static str {
    if item.part.is_empty() || item.category() == Category::Socket { "is gone" } else { "removed" }
}

/// The facts that the subject does not say already.
fn shown_facts<'a>(item: &Item, facts: &'a [String]) -> &'a [String] {
    let said = match (item.category(), item.part.is_empty()) {
        (Category::AuthorizedKey, false) | (Category::PrivilegedFile, true) => 1,
        _ => 0,
    };
    facts.get(said..).unwrap_or_default()
}

fn parenthesised(facts: &[String]) -> String {
    if facts.is_empty() { String::new() } else { format!(" ({})", facts.join(", ")) }
}

/// The facts that differ, or what else must.
fn difference(item: &Item, before: &[String], after: &[String]) -> String {
    let only = |these: &[String], those: &[String]| {
        these.iter().filter(|fact| !those.contains(fact)).cloned().collect::<Vec<_>>().join(", ")
    };
    let (was, is) = (only(before, after), only(after, before));
    match (was.is_empty(), is.is_empty()) {
        (false, false) => format!("{was} → {is}"),
        (false, true) => format!("no longer {was}"),
        (true, false) => format!("now {is}"),
        (true, true) => hidden_difference(item).to_owned(),
    }
}

fn hidden_difference(item: &Item) -> &'static str {
    match (item.category(), item.part.is_empty()) {
        (Category::Password, false) => "the password itself or its ageing",
        (Category::User | Category::Group, false) => "a field that is not shown",
        (Category::AuthorizedKey | Category::Sudoers | Category::Cron | Category::Loader, _) => "order or comments",
        (Category::User | Category::Group | Category::Password, true) => "order",
        _ => "it was written, replaced or touched",
    }
}

/// How much a change matters.
pub(super) fn severity(kind: Kind, item: &Item) -> Severity {
    let category = item.category();
    let opens = match kind {
        // Taking one of these away may lift a restriction.
        Kind::Removed => matches!(
            category,
            Category::Ssh
                | Category::Pam
                | Category::RemoteAccess
                | Category::Polkit
                | Category::Firewall
                | Category::NameService
        ),
        Kind::Added | Kind::Changed | Kind::Unspecified => match category {
            Category::Mount | Category::Bpf | Category::Unspecified => false,
            Category::Socket => !item.key.starts_with(b"unix "),
            _ => true,
        },
    };
    if opens { Severity::OpensDoor } else { Severity::Notable }
}
