//! Sessions without a terminal, shown as if they had one.

use breakglass_api::v1::{self, replay_item::Body, stdio_data::Direction};

/// Number of the stream that `--raw` gives.
pub(super) const STDOUT: u32 = 1;

/// What becomes of standard input, output and error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stdio {
    /// Left as it is.
    AsRecorded,
    /// Input as if typed; output left as it is.
    Exact,
    /// Both as at a terminal: lines end in a carriage return too.
    AsTerminal,
}

impl Stdio {
    pub(super) fn of(exact: bool, json: bool) -> Self {
        match (json, exact) {
            (true, _) => Self::AsRecorded,
            (false, true) => Self::Exact,
            (false, false) => Self::AsTerminal,
        }
    }

    /// Converts an item in place; leaves alone what is not stdio.
    pub(super) fn convert(self, item: &mut v1::ReplayItem) {
        let Some(Body::Stdio(data)) = &mut item.body else { return };
        let body = match (self, data.direction()) {
            (Self::AsRecorded, _) | (Self::Exact, Direction::Output | Direction::Unspecified) => return,
            (_, Direction::Input) => Body::Input(v1::TerminalInput {
                data: std::mem::take(&mut data.data),
                by: data.by,
                missing: data.missing,
                ..v1::TerminalInput::default()
            }),
            (Self::AsTerminal, _) => Body::Output(v1::TerminalOutput {
                data: with_returns(&data.data),
                by: data.by,
                missing: data.missing,
                ..v1::TerminalOutput::default()
            }),
        };
        item.body = Some(body);
    }
}

/// What a terminal's line discipline would have made of it.
fn with_returns(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() + data.len() / 16);
    for byte in data {
        if *byte == b'\n' {
            out.push(b'\r');
        }
        out.push(*byte);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(direction: Direction) -> v1::ReplayItem {
        let data = v1::StdioData { direction: direction.into(), data: b"a\nb".to_vec(), ..v1::StdioData::default() };
        v1::ReplayItem { body: Some(Body::Stdio(data)), ..v1::ReplayItem::default() }
    }

    #[test]
    fn output_is_left_alone_unless_it_is_for_a_terminal() {
        for (stdio, expected) in [(Stdio::AsRecorded, None), (Stdio::Exact, None), (Stdio::AsTerminal, Some(b"a\r\nb"))]
        {
            let mut item = item(Direction::Output);
            stdio.convert(&mut item);
            match (item.body, expected) {
                (Some(Body::Stdio(data)), None) => assert_eq!(data.data, b"a\nb"),
                (Some(Body::Output(output)), Some(expected)) => assert_eq!(output.data, expected),
                (other, _) => panic!("{stdio:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn input_is_as_if_typed() {
        let mut item = item(Direction::Input);
        Stdio::Exact.convert(&mut item);
        assert!(matches!(item.body, Some(Body::Input(input)) if input.data == b"a\nb"));
    }
}
