//! Programs: what runs, under which name, with which arguments, as whom, and in what surroundings.

use breakglass_api::v1::{Exec, file_action::Kind as File, system_action::Kind as System};

use crate::{
    case::{Case, Held},
    record::{Record, acted, is_act, whole},
    stage::Deed,
};

pub const CASES: &[Case] = &[
    Case::root(1, "arguments_change_under_the_probe", r#""$attack" race "$file" harmless dreadful"#)
        .done(both_arguments)
        .held(arguments_as_run),
    Case::root(1, "path_is_a_link_that_changes", LINK).held(true_program).peers(),
    Case::root(2, "arguments_are_not_in_memory", r#""$attack" cold "$file" "$mark""#).peers(),
    Case::root(3, "padding_of_a_megabyte", PADDING).held(padded).peers(),
    Case::operator(11, "another_cgroup_and_new_namespaces", r#"
        sudo -n unshare -muipC --fork sh -c 'echo $$ > /sys/fs/cgroup/cgroup.procs
        "$1" act "$2" "$3"' sh "$attack" "$file" "$mark"
    "#).peers(),
    Case::root(12, "login_uid_is_rewritten", r#"
        echo 4294967295 > /proc/self/loginuid
        echo 0 > /proc/self/loginuid
        act
    "#).held(login_uid).peers(),
    Case::root(19, "memory_file", r#""$attack" memfd "$file" "$mark""#).held(without_path).peers(),
    Case::root(19, "deleted_program", r#"
        cp "$attack" "$dir/gone"
        exec 7<"$dir/gone"
        rm "$dir/gone"
        /proc/self/fd/7 act "$file" "$mark"
    "#).held(without_path).peers(),
    Case::root(19, "through_the_loader", r#"/lib64/ld-linux-x86-64.so.2 "$attack" act "$file" "$mark""#).held(through_loader).peers(),
    Case::root(20, "machine_code", r#"HIDDEN=$file "$attack" machine-code @"#).held(executable_memory).peers(),
    Case::root(20, "library", LIBRARY).held(library).peers(),
    Case::root(26, "false_name", r#"bash -c 'exec -a "[kworker/0:1]" "$0" act "$1" "$2"' "$attack" "$file" "$mark""#).held(true_program).peers(),
    Case::root(26, "renamed_while_running", r#""$attack" rename systemd "$file" "$mark""#).held(renamed).peers(),
    Case::root(31, "dirty_number", r#"HIDDEN=$file "$attack" dirty @"#).held(folder_made).peers(),
    Case::root(31, "old_entry", r#"HIDDEN=$file "$attack" int80 @"#).held(folder_made).peers(),
    Case::root(31, "small_program", r#""$dir/small32" "$file""#).held(folder_made),
    Case::root(36, "thread_runs_it", r#""$attack" thread "$file" "$mark""#).peers(),
    Case::root(36, "child_of_its_grandparent", r#""$attack" sibling "$file" "$mark""#).peers(),
    Case::root(36, "orphan", r#"
        (setsid sh -c 'sleep 0.2
        "$1" act "$2" "$3"' sh "$attack" "$file" "$mark" >/dev/null 2>&1 &)
        appears
    "#).peers(),
    Case::root(37, "as_nobody", r#"setpriv --reuid 65534 --regid 65534 --clear-groups "$attack" act "$file" "$mark""#).peers(),
    Case::root(38, "mounted_over_another", r#"
        unshare -m sh -c 'mount --bind "$1" /bin/true
        /bin/true act "$2" "$3"' sh "$attack" "$file" "$mark"
    "#).held(mounted_over).peers(),
    Case::root(39, "in_a_root_of_its_own", CHROOT).held(in_root).done(in_root_done).peers(),
    Case::root(40, "user_namespace", r#"
        setpriv --reuid 65534 --regid 65534 --clear-groups unshare -Ur sh -c '"$1" act "$2" "$3"' sh "$attack" "$file" "$mark"
    "#).peers(),
    Case::root(41, "time_namespace", r#"unshare -T --boottime 100000000 --fork "$attack" act "$file" "$mark""#).held(times_hold).peers(),
];

const PADDING: &str = r#"
python3 -c 'import os, sys
os.execv(sys.argv[1], ["attack", "act", sys.argv[2]] + ["A" * 100000] * 13 + [sys.argv[3]])' "$attack" "$file" "$mark"
"#;

const LINK: &str = r#"
        ln -sf /bin/true "$dir/link"
        (for i in 1 2 3 4 5 6 7 8
        do ln -sf "$attack" "$dir/link"
        ln -sf /bin/true "$dir/link"
        done) & for i in 1 2 3 4 5 6
        do "$dir/link" act "$file" "$mark"
        done
        wait
        ln -sf "$attack" "$dir/link"
        "$dir/link" act "$file" "$mark"
    "#;

const LIBRARY: &str = r#"
        printf '#include <fcntl.h>\n__attribute__((constructor)) static void f(void) { creat("%s", 0644); }\n' "$file" > "$dir/lib.c"
        gcc -shared -fPIC -o "$dir/lib.so" "$dir/lib.c"
        cat "$dir/lib.so" > "$dir/$mark.so"
        HIDDEN=$dir/$mark.so "$attack" library @
    "#;

const CHROOT: &str = r#"
        mkdir -p "$dir/root"
        gcc -static -O1 -pthread -o "$dir/root/tool" "$dir/attack.c" -ldl 2>/dev/null
        chroot "$dir/root" /tool act /proof "$mark" && mv "$dir/root/proof" "$file"
    "#;

fn both_arguments(deed: &Deed) -> bool {
    let written = deed.written();
    written.contains("dreadful") && written.contains("harmless")
}

/// Every start has in the record the argument that it really had.
fn arguments_as_run(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    let notes = record.execs().filter(|exec| exec.argv.get(1).is_some_and(|word| word == b"note"));
    let recorded: Vec<String> =
        notes.filter_map(|exec| Some(String::from_utf8_lossy(exec.argv.get(3)?).into_owned())).collect();
    whole(recorded == deed.written().lines().collect::<Vec<_>>())
}

fn find_act<'a>(record: &Record<'a>, deed: &Deed) -> Option<&'a Exec> {
    record.execs().find(|exec| is_act(exec, deed))
}

fn true_program(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(record.execs().any(|exec| is_act(exec, deed) && exec.exe.ends_with(b"/attacks/attack")))
}

fn padded(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    let all =
        |exec: &&Exec| exec.argv_bytes > 1_200_000 && exec.argv.last().is_some_and(|last| last == deed.mark.as_bytes());
    whole(record.execs().any(|exec| all(&exec)))
}

fn login_uid(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(record.system(System::LoginUidSet).next().is_some() && acted(record, deed).is_some())
}

fn without_path(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(find_act(record, deed)?.file.as_ref().is_some_and(|file| file.anonymous || file.links == 0))
}

fn through_loader(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    let by_loader = |exec: &Exec| {
        exec.argv.get(2).is_some_and(|word| word == b"act")
            && exec.argv.last().is_some_and(|last| last == deed.mark.as_bytes())
    };
    whole(record.execs().any(by_loader) && record.file(File::Mapped, "/attacks/attack"))
}

fn executable_memory(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(record.system(System::MemoryExecutable).next().is_some() && folder_made(record, deed).is_some())
}

fn library(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(record.file(File::Mapped, &format!("{}.so", deed.mark)))
}

fn renamed(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    let mut execs = record.execs();
    let exec = execs.find(|exec| {
        exec.argv.get(1).is_some_and(|word| word == b"rename")
            && exec.argv.last().is_some_and(|last| last == deed.mark.as_bytes())
    })?;
    // What it does under the other name is done by the same process.
    let same = |action: &breakglass_api::v1::FileAction| {
        action.process == exec.process && action.path.ends_with(deed.mark.as_bytes())
    };
    whole(record.files(File::Opened).any(same))
}

fn folder_made(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(record.file(File::Made, &deed.mark))
}

/// The name is the other's; the inode is not.
fn mounted_over(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    let exec = find_act(record, deed)?;
    whole(record.system(System::Mounted).next().is_some() && exec.file.as_ref().is_some_and(|file| file.inode != 0))
}

fn in_root_done(deed: &Deed) -> bool {
    deed.acted()
}

fn in_root(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(find_act(record, deed).is_some() && record.system(System::RootChanged).next().is_some())
}

/// The record's times are the host's.
fn times_hold(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    find_act(record, deed)?;
    let now = breakglass_tests::machine::boot_ns().ok()?;
    whole(record.events.iter().all(|recorded| recorded.event.as_ref().is_none_or(|event| event.boot_ns <= now)))
}
