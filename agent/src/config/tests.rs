use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("agent.toml"), text).map_err(|e| e.to_string())
}

#[test]
fn nothing_set_is_all_defaults() {
    assert_eq!(parse("").unwrap(), Config::default());
}

#[test]
fn an_unknown_key_is_refused_with_file_line_and_key() {
    let message = parse("[grant]\nmax_ttl = \"1h\"\nmax_tll = \"2h\"\n").unwrap_err();
    assert!(message.contains("agent.toml"), "{message}");
    assert!(message.contains("line 3"), "{message}");
    assert!(message.contains("max_tll"), "{message}");
}

#[test]
fn values_out_of_bounds_name_their_key() {
    for (text, key) in [
        ("[grant]\nmax_ttl = \"25h\"", "grant.max_ttl"),
        ("[grant]\ndefault_ttl = \"2h\"", "grant.default_ttl"),
        // They would be no seconds, which every session is longer than.
        ("[grant]\nmax_ttl = \"900ms\"\ndefault_ttl = \"900ms\"", "grant.max_ttl"),
        ("[grant]\ndefault_ttl = \"900ms\"", "grant.default_ttl"),
        ("[grant]\nmax_key_lifetime = \"900ms\"", "grant.max_key_lifetime"),
        ("[grant]\nprepared_max = \"900ms\"", "grant.prepared_max"),
        ("[grant]\nticket_pattern = \"(\"", "grant.ticket_pattern"),
        ("[grant]\nrequired_signers = 0", "grant.required_signers"),
        ("[grant]\nrequired_signers = 9", "grant.required_signers"),
        ("[grant]\nmax_key_lifetime = \"0s\"", "grant.max_key_lifetime"),
        ("[grant]\nmax_key_lifetime = \"long\"", "max_key_lifetime"),
        ("[grant]\nprepared_max = \"91days\"", "grant.prepared_max"),
        ("[grant]\nsources = [\"10.0.0.0/40\"]", "sources"),
        ("[account]\nname = \"root\"", "account.name"),
        ("[collector]\nurls = []", "collector.urls"),
        ("[collector]\nurls = [\"http://x:1\"]", "collector.urls"),
        ("[notice]\nsyslog = 1", "syslog"),
        ("[notice.webhook]\nurl = \"https://x\"", "secret"),
        ("[notice.webhook]\nurl = \"http://x\"\nsecret = \"/s\"", "notice.webhook.url"),
        ("[collector]\nurls = [\"https://\"]", "collector.urls"),
        ("[collector]\nurls = [\"https://x y:1\"]", "collector.urls"),
        ("[collector]\nurls = [\"https://:7444\"]", "collector.urls"),
        ("[collector]\nurls = [\"https://x:1\"]\nserver_name = \"\"", "collector.server_name"),
        ("[account]\nssh_port = 0", "account.ssh_port"),
        ("[kernel]\nbulk_ring = \"3MiB\"", "kernel.bulk_ring"),
        ("[kernel]\nminimum_tier = \"full\"\nmaximum_tier = \"trace\"", "kernel.minimum_tier: full"),
        ("[kernel]\nmaximum_tier = \"none\"", "kernel.minimum_tier: basic"),
        ("[spool]\nmax_bytes = \"8MiB\"", "spool.max_bytes"),
        ("[spool]\nsegment_bytes = \"1KiB\"", "spool.segment_bytes"),
        // Four of them are nothing in 64 bits.
        ("[spool]\nsegment_bytes = \"4294967296GiB\"", "spool.max_bytes"),
    ] {
        let message = parse(text).unwrap_err();
        assert!(message.contains(key), "{text}: {message}");
    }
}

#[test]
fn values_at_their_bounds_are_taken() {
    for text in [
        "[grant]\nmax_ttl = \"1s\"\ndefault_ttl = \"1s\"\nprepared_max = \"0s\"",
        "[kernel]\nminimum_tier = \"trace\"\nmaximum_tier = \"trace\"",
        "[kernel]\nminimum_tier = \"none\"\nmaximum_tier = \"none\"",
        "[collector]\nurls = [\"https://[2001:db8::1]:7444\", \"https://collector.example.org\"]",
        "[spool]\nmax_bytes = \"4MiB\"\nsegment_bytes = \"1MiB\"",
    ] {
        parse(text).unwrap();
    }
}

#[test]
fn sizes() {
    assert_eq!(parse_size("16MiB"), Some(16 << 20));
    assert_eq!(parse_size("12"), Some(12));
    for bad in ["", "MiB", "1 MB", "-1KiB", "99999999999GiB", "1.5GiB"] {
        assert_eq!(parse_size(bad), None, "{bad}");
    }
}
