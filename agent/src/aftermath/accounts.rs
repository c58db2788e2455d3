//! Users, groups and passwords.

use breakglass_api::v1::left_behind::Category;

use super::{
    files::Host,
    lines::container,
    snapshot::{Item, Sink},
    text::shown,
    tree::{children, joined},
};

/// Most users whose homes are looked at.
pub(super) const USERS_MAX: usize = 4096;

/// Folder of home folders, for users that only a directory service knows.
const HOMES: &[u8] = b"/home";

/// What people are told of an entry; it must not give a password's hash away.
type Facts = fn(&[&[u8]]) -> Vec<String>;

/// The files, and how their entries read.
const DATABASES: &[(Category, &[u8], Facts)] = &[
    (Category::User, b"/etc/passwd", user_facts),
    (Category::Group, b"/etc/group", group_facts),
    (Category::Password, b"/etc/shadow", shadow_facts),
    (Category::Password, b"/etc/gshadow", gshadow_facts),
];

/// Whose home to look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct User {
    pub(super) name: Vec<u8>,
    pub(super) uid: Vec<u8>,
    pub(super) home: Vec<u8>,
}

/// Adds users, groups and passwords; returns the users.
pub(super) fn accounts(host: &Host, sink: &mut Sink) -> Vec<User> {
    let mut users = Vec::new();
    for &(category, path, facts) in DATABASES {
        let Some(contents) = container(host, sink, category, path) else { continue };
        for line in contents.bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            if sink.over(category, path) {
                break;
            }
            let fields = fields(line);
            sink.add(entry(category, path, &fields, facts));
            if category == Category::User {
                users.extend(user(&fields));
            }
        }
    }
    homes_without_user(host, sink, &mut users);
    if users.len() > USERS_MAX {
        let why = format!("more than {USERS_MAX} users; the homes of the rest were not looked at");
        sink.cut(Category::Unspecified, b"", why);
        users.truncate(USERS_MAX);
    }
    users
}

/// The colon-separated fields of an entry.
fn fields(line: &[u8]) -> Vec<&[u8]> {
    line.split(|&byte| byte == b':').collect()
}

fn entry(category: Category, path: &[u8], fields: &[&[u8]], facts: Facts) -> Item {
    let name = fields.first().copied().unwrap_or_default();
    Item::new(category, path, facts(fields)).part(shown(name)).compares(fields)
}

fn user(fields: &[&[u8]]) -> Option<User> {
    let &[name, _, uid, _, _, home, ..] = fields else { return None };
    home.starts_with(b"/").then(|| User { name: name.to_vec(), uid: uid.to_vec(), home: home.to_vec() })
}

/// A folder in `/home` that is nobody's in the local files: somebody's of a directory service, perhaps.
fn homes_without_user(host: &Host, sink: &mut Sink, users: &mut Vec<User>) {
    let Ok(Some(folder)) = host.follow(HOMES) else { return };
    if folder.kind() != rustix::fs::FileType::Directory {
        return;
    }
    let mut found = Vec::new();
    children(host, sink, Category::Unspecified, HOMES, &folder, &mut |_, _, home| found.push(home.to_vec()));
    for home in found {
        if !users.iter().any(|user| user.home == home) {
            let name = home.get(HOMES.len() + 1..).unwrap_or_default().to_vec();
            users.push(User { home: joined(HOMES, &name), name, uid: Vec::new() });
        }
    }
}

fn fact(name: &str, fields: &[&[u8]], at: usize) -> String {
    format!("{name} {}", shown(fields.get(at).copied().unwrap_or_default()))
}

/// As [`fact`], where the field is not empty.
fn fact_if_set(name: &str, fields: &[&[u8]], at: usize) -> Option<String> {
    fields.get(at).is_some_and(|field| !field.is_empty()).then(|| fact(name, fields, at))
}

fn user_facts(fields: &[&[u8]]) -> Vec<String> {
    if fields.len() < 7 {
        return vec!["malformed entry".into()];
    }
    let mut facts: Vec<_> =
        [("uid", 2), ("gid", 3), ("home", 5), ("shell", 6)].iter().map(|&(name, at)| fact(name, fields, at)).collect();
    // Login programs take a password from here before they look at the shadow file.
    match fields.get(1).copied() {
        Some(b"x") => {}
        Some(b"") => facts.push("no password needed".into()),
        _ => facts.push("password outside shadow".into()),
    }
    facts
}

fn group_facts(fields: &[&[u8]]) -> Vec<String> {
    let mut facts = vec![fact("gid", fields, 2)];
    facts.extend(fact_if_set("members", fields, 3));
    facts
}

fn shadow_facts(fields: &[&[u8]]) -> Vec<String> {
    let mut facts = vec![password_fact(fields).to_owned()];
    facts.extend(fact_if_set("last changed on day", fields, 2));
    facts.extend(fact_if_set("expires on day", fields, 7));
    facts
}

fn gshadow_facts(fields: &[&[u8]]) -> Vec<String> {
    let mut facts = vec![format!("of the group, {}", password_fact(fields))];
    facts.extend(fact_if_set("administrators", fields, 2));
    facts.extend(fact_if_set("members", fields, 3));
    facts
}

fn password_fact(fields: &[&[u8]]) -> &'static str {
    match fields.get(1).copied().unwrap_or_default() {
        [] => "no password needed",
        [b'!' | b'*', ..] => "password locked",
        _ => "password set",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn entries_as_facts() {
        let line = b"eve:x:0:0:Eve:/root:/bin/sh";
        assert_eq!(user_facts(&fields(line)), ["uid 0", "gid 0", "home /root", "shell /bin/sh"]);
        assert_eq!(user_facts(&fields(b"eve::0:0::/:/bin/sh")).last().unwrap(), "no password needed");
        assert_eq!(user_facts(&fields(b"junk")), ["malformed entry"]);
        assert_eq!(group_facts(&fields(b"sudo:x:27:eve,bob")), ["gid 27", "members eve,bob"]);
        assert_eq!(
            shadow_facts(&fields(b"eve:$y$secret:19000:0:99999:7:::")),
            ["password set", "last changed on day 19000"]
        );
        assert_eq!(shadow_facts(&fields(b"eve:!*::::::1:")), ["password locked", "expires on day 1"]);
        assert_eq!(gshadow_facts(&fields(b"sudo:*::eve")), ["of the group, password locked", "members eve"]);
    }

    #[test]
    fn a_home_that_is_no_path_is_nobodys() {
        assert_eq!(user(&fields(b"a:x:1:1::relative:/bin/sh")), None);
        assert_eq!(user(&fields(b"a:x:1:1:::/bin/sh")), None);
    }

    proptest! {
        #[test]
        fn noise_never_panics_and_no_hash_is_shown(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            let fields = fields(&noise);
            let _ = (user(&fields), user_facts(&fields), group_facts(&fields), gshadow_facts(&fields));
            let with_hash = [&b"eve"[..], b"$6$salt$thehash"].into_iter().chain(fields.iter().copied()).collect::<Vec<_>>();
            prop_assert!(!shadow_facts(&with_hash).join(" ").contains("thehash"));
        }
    }
}
