//! asciicast v3, for asciinema and its players: <https://docs.asciinema.org/manual/asciicast/v3/>.
//!
//! A header line, then `[interval, code, data]`, intervals in seconds since the event before. `o` is output, `i` input, `r` a
//! change of size, `m` a marker: every command, and whatever is missing. Data are text in this format, so bytes that are not UTF-8
//! become U+FFFD; `replay --raw` has them.

use breakglass_api::v1::{self, replay_item::Body};
use serde_json::json;

use crate::{
    print::{counted, quote},
    security::show::describe_gap,
};

/// Size where none was recorded.
const COLS: u32 = 80;
const ROWS: u32 = 24;

/// Writes one recording, item by item.
#[derive(Debug, Default)]
pub struct Cast {
    begun: bool,
    title: String,
    /// Seconds since 1970.
    started: i64,
    size: (u32, u32),
    /// Boot clock of the first item, nanoseconds.
    origin: u64,
    /// Time told so far, microseconds since the origin; so that rounding does not add up.
    told: u64,
    /// A character whose end is still to come.
    cut: Vec<u8>,
}

impl Cast {
    /// A recording of a session; the title is put into the header.
    pub fn new(title: String, opened_ns: i64) -> Self {
        Self { title, started: opened_ns / 1_000_000_000, size: (COLS, ROWS), ..Self::default() }
    }

    /// Appends the lines for an item.
    pub fn item(&mut self, item: &v1::ReplayItem, out: &mut String) {
        let Some(body) = &item.body else { return };
        if !self.begun {
            self.begin(item, body, out);
        }
        match body {
            Body::Output(output) => self.output(item.boot_ns, output, out),
            Body::Input(input) => {
                let text = String::from_utf8_lossy(&input.data).into_owned();
                self.event(item.boot_ns, "i", &text, out);
            }
            Body::Withheld(withheld) => {
                let text = format!("{} typed unseen", counted(withheld.bytes, "byte"));
                self.event(item.boot_ns, "m", &text, out);
            }
            Body::Command(command) => {
                if let Some(exec) = &command.exec {
                    self.event(item.boot_ns, "m", &quote::line(&exec.argv), out);
                }
            }
            Body::Gap(gap) => self.event(item.boot_ns, "m", &describe_gap(gap), out),
            // The source has made input and output of it.
            Body::Stdio(_) => {}
        }
    }

    /// Appends what is left at the end; a header, if there was nothing at all.
    pub fn end(&mut self, out: &mut String) {
        if !self.begun {
            self.header(out);
        }
        if !self.cut.is_empty() {
            self.cut.clear();
            self.line(0, "o", "\u{fffd}", out);
        }
    }

    fn begin(&mut self, item: &v1::ReplayItem, body: &Body, out: &mut String) {
        self.origin = item.boot_ns;
        if let Body::Output(output) = body
            && output.cols > 0
            && output.rows > 0
        {
            self.size = (output.cols, output.rows);
        }
        if item.wall_ns > 0 {
            self.started = item.wall_ns / 1_000_000_000;
        }
        self.header(out);
    }

    fn header(&mut self, out: &mut String) {
        self.begun = true;
        let term = json!({"cols": self.size.0, "rows": self.size.1});
        let header = json!({"version": 3, "term": term, "timestamp": self.started, "title": self.title});
        out.push_str(&header.to_string());
        out.push('\n');
    }

    fn output(&mut self, boot_ns: u64, output: &v1::TerminalOutput, out: &mut String) {
        let size = (output.cols, output.rows);
        if output.cols > 0 && output.rows > 0 && size != self.size {
            self.size = size;
            self.event(boot_ns, "r", &format!("{}x{}", size.0, size.1), out);
        }
        let text = self.text(&output.data);
        if !text.is_empty() {
            self.event(boot_ns, "o", &text, out);
        }
        if output.missing > 0 {
            self.event(boot_ns, "m", &format!("{} missing", counted(output.missing, "byte")), out);
        }
    }

    /// Decodes output, keeping a character that is cut at the end for the next time.
    fn text(&mut self, data: &[u8]) -> String {
        let mut bytes = std::mem::take(&mut self.cut);
        bytes.extend_from_slice(data);
        let unfinished = match std::str::from_utf8(&bytes) {
            Ok(_) => bytes.len(),
            Err(_) => unfinished(&bytes),
        };
        self.cut = bytes.split_off(unfinished);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn event(&mut self, boot_ns: u64, code: &str, data: &str, out: &mut String) {
        let at = boot_ns.saturating_sub(self.origin) / 1000;
        let interval = at.saturating_sub(self.told);
        self.told = self.told.max(at);
        self.line(interval, code, data, out);
    }

    fn line(&self, interval_us: u64, code: &str, data: &str, out: &mut String) {
        let (s, us) = (interval_us / 1_000_000, interval_us % 1_000_000);
        // Written out, since a float would show rounding.
        out.push_str(&format!("[{s}.{us:06}, {}, {}]\n", json!(code), json!(data)));
    }
}

/// Where a character begins that the bytes end in the middle of; their length if there is none.
fn unfinished(bytes: &[u8]) -> usize {
    let mut at = 0;
    for chunk in bytes.utf8_chunks() {
        at += chunk.valid().len();
        let last = at + chunk.invalid().len() == bytes.len();
        let cut = std::str::from_utf8(chunk.invalid()).is_err_and(|error| error.error_len().is_none());
        if last && cut {
            return at;
        }
        at += chunk.invalid().len();
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn output(boot_ns: u64, data: &[u8], cols: u32) -> v1::ReplayItem {
        let output = v1::TerminalOutput { data: data.to_vec(), cols, rows: 24, ..v1::TerminalOutput::default() };
        v1::ReplayItem { wall_ns: 5_000_000_000, boot_ns, body: Some(Body::Output(output)) }
    }

    fn written(items: &[v1::ReplayItem]) -> Vec<Value> {
        let (mut cast, mut out) = (Cast::new("t".to_owned(), 1_000_000_000), String::new());
        items.iter().for_each(|item| cast.item(item, &mut out));
        cast.end(&mut out);
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn writes_header_output_resize_and_markers() {
        let exec = v1::Exec { argv: vec![b"ls".to_vec(), b"a b".to_vec()], ..v1::Exec::default() };
        let command = v1::Command { exec: Some(exec), ..v1::Command::default() };
        let items = [
            output(1_000, b"$ \xe2\x82", 80),
            v1::ReplayItem { boot_ns: 500_001_000, body: Some(Body::Command(command)), ..v1::ReplayItem::default() },
            output(1_500_001_000, b"\xac\x1b[m\xff", 100),
        ];
        assert_eq!(
            written(&items),
            [
                json!({"version": 3, "term": {"cols": 80, "rows": 24}, "timestamp": 5, "title": "t"}),
                json!([0.0, "o", "$ "]),
                json!([0.5, "m", "ls 'a b'"]),
                json!([1.0, "r", "100x24"]),
                json!([0.0, "o", "€\u{1b}[m\u{fffd}"]),
            ]
        );
        assert_eq!(written(&[]).len(), 1);
        assert_eq!(written(&[output(0, b"\xe2", 80)])[1], json!([0.0, "o", "\u{fffd}"]));
    }

    proptest! {
        #[test]
        fn text_and_time_add_up(text in ".{0,40}", cuts in proptest::collection::vec((1..9usize, 0..10_000_000u64), 1..20)) {
            let (mut rest, mut at, mut items) = (text.as_bytes(), 0, Vec::new());
            for (length, wait) in cuts {
                let (head, tail) = rest.split_at(length.min(rest.len()));
                at += wait;
                items.push(output(at, head, 80));
                rest = tail;
            }
            items.push(output(at, rest, 80));
            let lines = written(&items);
            let told: String = lines[1..].iter().filter_map(|line| line[2].as_str()).collect();
            prop_assert_eq!(told, text);
            let seconds: f64 = lines[1..].iter().filter_map(|line| line[0].as_f64()).sum();
            prop_assert!(seconds <= at as f64 / 1e9 + 1e-6);
        }
    }
}
