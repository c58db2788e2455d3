//! Which files and folders are compared, and how.

use breakglass_api::v1::left_behind::Category::{self, *};

use super::{
    accounts::User,
    files::Host,
    lines::{line_file, line_folder, plain},
    snapshot::Sink,
    tree::{Read, joined, tree},
};

use How::{Content, LineFolder, Lines, Stat};

/// How a place is compared.
#[derive(Clone, Copy, Debug)]
enum How {
    /// A file, or a folder down to so many levels, by content.
    Content(u32),
    /// The same by size, owner, mode and times.
    Stat(u32),
    /// A file line by line.
    Lines,
    /// Every file of a folder line by line.
    LineFolder,
}

/// A place on the host, or below a home.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) category: Category,
    pub(super) path: &'static str,
    how: How,
}

const fn place(category: Category, path: &'static str, how: How) -> Place {
    Place { category, path, how }
}

/// On every host. Vendor folders, which are large and change with packages, by their times.
pub(super) const HOST: &[Place] = &[
    place(Pam, "/etc/pam.d", Content(1)),
    place(Pam, "/etc/pam.conf", Content(0)),
    place(Pam, "/etc/security", Content(2)),
    place(Pam, "/etc/login.defs", Content(0)),
    place(Pam, "/etc/securetty", Content(0)),
    place(Pam, "/etc/shells", Content(0)),
    place(Pam, "/usr/lib/pam.d", Stat(1)),
    place(Pam, "/usr/lib/security", Stat(1)),
    place(Pam, "/usr/lib64/security", Stat(1)),
    place(Pam, "/usr/lib/x86_64-linux-gnu/security", Stat(1)),
    place(Pam, "/usr/lib/aarch64-linux-gnu/security", Stat(1)),
    place(Sudoers, "/etc/sudo.conf", Content(0)),
    place(Sudoers, "/etc/doas.conf", Content(0)),
    place(Systemd, "/etc/systemd", Content(4)),
    place(Systemd, "/run/systemd/system", Content(2)),
    place(Systemd, "/run/systemd/user", Content(2)),
    place(Systemd, "/run/systemd/transient", Content(2)),
    place(Systemd, "/run/systemd/generator", Content(2)),
    place(Systemd, "/run/systemd/generator.early", Content(2)),
    place(Systemd, "/run/systemd/generator.late", Content(2)),
    place(Systemd, "/run/systemd/system.control", Content(2)),
    place(Systemd, "/run/systemd/system-generators", Content(1)),
    place(Systemd, "/usr/local/lib/systemd", Content(3)),
    place(Systemd, "/usr/lib/systemd/system", Stat(2)),
    place(Systemd, "/usr/lib/systemd/user", Stat(2)),
    place(Systemd, "/usr/lib/systemd/system-generators", Stat(1)),
    place(Systemd, "/usr/lib/systemd/user-generators", Stat(1)),
    place(Systemd, "/usr/lib/systemd/system-sleep", Stat(1)),
    place(Systemd, "/usr/lib/systemd/system-shutdown", Stat(1)),
    place(Systemd, "/usr/share/dbus-1/system-services", Stat(1)),
    place(Systemd, "/etc/dbus-1", Content(2)),
    place(Systemd, "/etc/tmpfiles.d", Content(1)),
    place(Systemd, "/etc/sysusers.d", Content(1)),
    place(Cron, "/etc/crontab", Lines),
    place(Cron, "/etc/anacrontab", Lines),
    place(Cron, "/etc/cron.d", LineFolder),
    place(Cron, "/etc/cron.allow", Lines),
    place(Cron, "/etc/cron.deny", Lines),
    place(Cron, "/etc/cron.hourly", Content(1)),
    place(Cron, "/etc/cron.daily", Content(1)),
    place(Cron, "/etc/cron.weekly", Content(1)),
    place(Cron, "/etc/cron.monthly", Content(1)),
    place(Cron, "/var/spool/cron", LineFolder),
    place(Cron, "/var/spool/cron/crontabs", LineFolder),
    place(Cron, "/var/spool/anacron", Content(1)),
    place(AtJob, "/var/spool/at", Content(1)),
    place(AtJob, "/var/spool/cron/atjobs", Content(1)),
    place(AtJob, "/etc/at.allow", Content(0)),
    place(AtJob, "/etc/at.deny", Content(0)),
    place(Loader, "/etc/ld.so.preload", Lines),
    place(Loader, "/etc/ld.so.conf", Lines),
    place(Loader, "/etc/ld.so.conf.d", LineFolder),
    place(Loader, "/etc/ld.so.cache", Stat(0)),
    place(Profile, "/etc/profile", Content(0)),
    place(Profile, "/etc/profile.d", Content(1)),
    place(Profile, "/etc/bash.bashrc", Content(0)),
    place(Profile, "/etc/bash.bash_logout", Content(0)),
    place(Profile, "/etc/bashrc", Content(0)),
    place(Profile, "/etc/environment", Content(0)),
    place(Profile, "/etc/environment.d", Content(1)),
    place(Profile, "/etc/zsh", Content(1)),
    place(Profile, "/etc/zshenv", Content(0)),
    place(Profile, "/etc/zshrc", Content(0)),
    place(Profile, "/etc/zprofile", Content(0)),
    place(Profile, "/etc/csh.cshrc", Content(0)),
    place(Profile, "/etc/csh.login", Content(0)),
    place(Profile, "/etc/fish", Content(2)),
    place(Profile, "/etc/skel", Content(2)),
    place(Startup, "/etc/rc.local", Content(0)),
    place(Startup, "/etc/rc.d", Content(2)),
    place(Startup, "/etc/init.d", Content(1)),
    place(Startup, "/etc/rcS.d", Content(1)),
    place(Startup, "/etc/rc0.d", Content(1)),
    place(Startup, "/etc/rc1.d", Content(1)),
    place(Startup, "/etc/rc2.d", Content(1)),
    place(Startup, "/etc/rc3.d", Content(1)),
    place(Startup, "/etc/rc4.d", Content(1)),
    place(Startup, "/etc/rc5.d", Content(1)),
    place(Startup, "/etc/rc6.d", Content(1)),
    place(Startup, "/etc/inittab", Content(0)),
    place(Startup, "/etc/inetd.conf", Content(0)),
    place(Startup, "/etc/xinetd.d", Content(1)),
    place(Startup, "/etc/update-motd.d", Content(1)),
    place(Startup, "/etc/logrotate.conf", Content(0)),
    place(Startup, "/etc/logrotate.d", Content(1)),
    place(Startup, "/etc/network", Content(2)),
    place(Startup, "/etc/networkd-dispatcher", Content(2)),
    place(Startup, "/etc/NetworkManager", Content(3)),
    place(Startup, "/etc/dhcp", Content(2)),
    place(Startup, "/etc/ppp", Content(2)),
    place(Startup, "/etc/acpi", Content(2)),
    place(Startup, "/etc/binfmt.d", Content(1)),
    place(ModuleConfig, "/etc/modules", Content(0)),
    place(ModuleConfig, "/etc/modules-load.d", Content(1)),
    place(ModuleConfig, "/etc/modprobe.d", Content(1)),
    place(ModuleConfig, "/run/modprobe.d", Content(1)),
    place(ModuleConfig, "/run/modules-load.d", Content(1)),
    place(ModuleConfig, "/usr/lib/modprobe.d", Stat(1)),
    place(ModuleConfig, "/usr/lib/modules-load.d", Stat(1)),
    place(Sysctl, "/etc/sysctl.conf", Content(0)),
    place(Sysctl, "/etc/sysctl.d", Content(1)),
    place(Sysctl, "/run/sysctl.d", Content(1)),
    place(Sysctl, "/usr/lib/sysctl.d", Stat(1)),
    place(Udev, "/etc/udev", Content(2)),
    place(Udev, "/run/udev/rules.d", Content(1)),
    place(Udev, "/usr/lib/udev/rules.d", Stat(1)),
    place(Packages, "/etc/apt", Content(3)),
    place(Packages, "/usr/share/keyrings", Stat(1)),
    place(Packages, "/etc/dpkg", Content(2)),
    place(Packages, "/etc/yum.conf", Content(0)),
    place(Packages, "/etc/yum", Content(2)),
    place(Packages, "/etc/yum.repos.d", Content(1)),
    place(Packages, "/etc/dnf", Content(3)),
    place(Packages, "/etc/pki/rpm-gpg", Content(1)),
    place(Packages, "/etc/zypp", Content(2)),
    place(Autostart, "/etc/xdg/autostart", Content(1)),
    place(Autostart, "/etc/X11", Content(3)),
    place(Polkit, "/etc/polkit-1", Content(3)),
    place(Polkit, "/usr/share/polkit-1/rules.d", Stat(1)),
    place(Polkit, "/usr/share/polkit-1/actions", Stat(1)),
    place(Polkit, "/var/lib/polkit-1", Content(3)),
    place(NameService, "/etc/nsswitch.conf", Content(0)),
    place(NameService, "/etc/hosts", Content(0)),
    place(NameService, "/etc/resolv.conf", Content(0)),
    place(NameService, "/etc/krb5.conf", Content(0)),
    place(NameService, "/etc/krb5.conf.d", Content(1)),
    place(NameService, "/etc/krb5.keytab", Content(0)),
    place(NameService, "/etc/sssd", Content(2)),
    place(NameService, "/etc/ldap", Content(1)),
    place(NameService, "/etc/nslcd.conf", Content(0)),
    place(NameService, "/etc/subuid", Content(0)),
    place(NameService, "/etc/subgid", Content(0)),
    place(NameService, "/etc/userdb", Content(1)),
    place(NameService, "/run/userdb", Content(1)),
    place(RemoteAccess, "/etc/hosts.allow", Content(0)),
    place(RemoteAccess, "/etc/hosts.deny", Content(0)),
    place(RemoteAccess, "/etc/hosts.equiv", Content(0)),
    place(RemoteAccess, "/etc/ssh/shosts.equiv", Content(0)),
    // Our own doors, where they usually are: who may sign, and new one-time codes.
    place(RemoteAccess, "/etc/breakglass", Content(2)),
    place(RemoteAccess, "/var/lib/breakglass/codes", Content(0)),
    place(Firewall, "/etc/nftables.conf", Content(0)),
    place(Firewall, "/etc/nftables", Content(2)),
    place(Firewall, "/etc/iptables", Content(1)),
    place(Firewall, "/etc/sysconfig/iptables", Content(0)),
    place(Firewall, "/etc/sysconfig/nftables.conf", Content(0)),
    place(Firewall, "/etc/ufw", Content(2)),
    place(Firewall, "/etc/firewalld", Content(3)),
    place(Linger, "/var/lib/systemd/linger", Content(1)),
    place(Boot, "/etc/default", Content(2)),
    place(Boot, "/etc/grub.d", Content(1)),
    place(Boot, "/etc/kernel", Content(2)),
    place(Boot, "/etc/initramfs-tools", Content(3)),
    place(Boot, "/etc/dracut.conf", Content(0)),
    place(Boot, "/etc/dracut.conf.d", Content(1)),
    place(Boot, "/etc/crypttab", Content(0)),
    place(Boot, "/etc/fstab", Content(0)),
    place(Boot, "/boot", Stat(3)),
    place(Trust, "/usr/local/share/ca-certificates", Content(2)),
    place(Trust, "/etc/ca-certificates.conf", Content(0)),
    place(Trust, "/etc/pki/ca-trust/source", Content(2)),
    place(Trust, "/etc/ssl/certs/ca-certificates.crt", Stat(0)),
    place(Trust, "/etc/pki/ca-trust/extracted", Stat(3)),
];

/// Below every home.
const HOME: &[Place] = &[
    place(Profile, ".bashrc", Content(0)),
    place(Profile, ".bash_profile", Content(0)),
    place(Profile, ".bash_login", Content(0)),
    place(Profile, ".bash_logout", Content(0)),
    place(Profile, ".bash_aliases", Content(0)),
    place(Profile, ".profile", Content(0)),
    place(Profile, ".zshenv", Content(0)),
    place(Profile, ".zprofile", Content(0)),
    place(Profile, ".zshrc", Content(0)),
    place(Profile, ".zlogin", Content(0)),
    place(Profile, ".zlogout", Content(0)),
    place(Profile, ".kshrc", Content(0)),
    place(Profile, ".mkshrc", Content(0)),
    place(Profile, ".cshrc", Content(0)),
    place(Profile, ".tcshrc", Content(0)),
    place(Profile, ".login", Content(0)),
    place(Profile, ".inputrc", Content(0)),
    place(Profile, ".config/fish", Content(2)),
    place(Profile, ".config/environment.d", Content(1)),
    place(Profile, ".pam_environment", Content(0)),
    place(Profile, ".vimrc", Content(0)),
    place(Profile, ".gitconfig", Content(0)),
    place(Ssh, ".ssh/rc", Content(0)),
    place(Ssh, ".ssh/environment", Content(0)),
    place(Ssh, ".ssh/config", Content(0)),
    place(Systemd, ".config/systemd/user", Content(2)),
    place(Systemd, ".local/share/systemd/user", Content(2)),
    place(Autostart, ".config/autostart", Content(1)),
    place(Autostart, ".xprofile", Content(0)),
    place(Autostart, ".xsession", Content(0)),
    place(Autostart, ".xsessionrc", Content(0)),
    place(Autostart, ".xinitrc", Content(0)),
    place(RemoteAccess, ".rhosts", Content(0)),
    place(RemoteAccess, ".shosts", Content(0)),
    place(RemoteAccess, ".k5login", Content(0)),
    place(RemoteAccess, ".k5users", Content(0)),
    place(RemoteAccess, ".forward", Content(0)),
];

/// Unit files that a user's manager was given until the next boot.
const RUN_USER: &str = "/run/user";

/// Adds one place of the host.
pub(super) fn host_place(host: &Host, sink: &mut Sink, place: &Place) {
    add(host, sink, place, place.path.as_bytes());
}

/// Adds what a user's shells and sessions read.
pub(super) fn home(host: &Host, sink: &mut Sink, home: &[u8]) {
    // A home that is not there has nothing in it; most system users have none.
    if !matches!(host.follow(home), Ok(Some(_))) {
        return;
    }
    for place in HOME {
        if sink.over(Category::Unspecified, home) {
            return;
        }
        add(host, sink, place, &joined(home, place.path.as_bytes()));
    }
}

/// Adds a user's units of this boot.
pub(super) fn run_user(host: &Host, sink: &mut Sink, user: &User) {
    if user.uid.is_empty() || !user.uid.iter().all(u8::is_ascii_digit) {
        return;
    }
    let folder = joined(&joined(RUN_USER.as_bytes(), &user.uid), b"systemd");
    for name in [&b"user"[..], b"transient", b"user.control"] {
        tree(host, sink, Systemd, &joined(&folder, name), 2, Read::Content);
    }
}

fn add(host: &Host, sink: &mut Sink, place: &Place, path: &[u8]) {
    match place.how {
        Content(depth) => tree(host, sink, place.category, path, depth, Read::Content),
        Stat(depth) => tree(host, sink, place.category, path, depth, Read::Stat),
        Lines => line_file(host, sink, place.category, path, plain),
        LineFolder => line_folder(host, sink, place.category, path, plain),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_place_is_named_once() {
        let paths: BTreeSet<_> = HOST.iter().chain(HOME).map(|place| place.path).collect();
        assert_eq!(paths.len(), HOST.len() + HOME.len());
        assert!(HOST.iter().all(|place| place.path.starts_with('/')));
        assert!(HOME.iter().all(|place| !place.path.starts_with('/')));
    }
}
