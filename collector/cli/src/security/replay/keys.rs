//! The reviewer's keyboard, and giving the terminal back as it was found.

use std::{
    io::{self, IsTerminal, Read},
    sync::{Mutex, Once, PoisonError},
};

use nix::sys::termios::{self, FlushArg, InputFlags, LocalFlags, OutputFlags, SetArg, Termios};
use tokio::sync::mpsc;

/// Keys waiting to be acted on. Nobody needs more; further ones are dropped.
const KEYS_MAX: usize = 16;

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// End the replay.
    Quit,
    /// Stop, or go on.
    Pause,
    /// Twice as fast.
    Faster,
    /// Half as fast.
    Slower,
}

/// Settings to return to, for every way out: drop, signal, panic.
static FOUND: Mutex<Option<Termios>> = Mutex::new(None);
static PANIC_HOOK: Once = Once::new();

/// Standard input read key by key, until dropped. Nothing if it is no terminal.
pub struct Keyboard {
    keys: Option<mpsc::Receiver<Key>>,
}

impl Keyboard {
    /// Takes the keyboard over.
    pub fn open() -> io::Result<Self> {
        let input = io::stdin();
        if !input.is_terminal() {
            return Ok(Self { keys: None });
        }
        let found = termios::tcgetattr(&input)?;
        let mut raw = found.clone();
        raw.local_flags &= !(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG | LocalFlags::IEXTEN);
        raw.input_flags &= !(InputFlags::IXON | InputFlags::ICRNL);
        // What is replayed went through the recorded terminal's own output processing.
        raw.output_flags &= !OutputFlags::OPOST;
        *FOUND.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        PANIC_HOOK.call_once(|| {
            let say = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                say(info);
            }));
        });
        termios::tcsetattr(&input, SetArg::TCSADRAIN, &raw)?;
        Ok(Self { keys: Some(listen()) })
    }

    /// The next key; never, where there is no keyboard.
    pub async fn key(&mut self) -> Key {
        if let Some(keys) = &mut self.keys {
            if let Some(key) = keys.recv().await {
                return key;
            }
            // The keyboard was closed.
            self.keys = None;
        }
        std::future::pending().await
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        restore();
    }
}

/// Returns to the settings found, and throws away what was typed or answered meanwhile, lest a shell take it for a command.
fn restore() {
    if let Some(found) = FOUND.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let input = io::stdin();
        // Nothing else can be done for a terminal that is gone.
        let _ = termios::tcflush(&input, FlushArg::TCIFLUSH);
        let _ = termios::tcsetattr(&input, SetArg::TCSADRAIN, &found);
    }
}

/// Reads keys on a thread of its own: reading a terminal cannot be waited for otherwise without changing it for whoever shares
/// it. The thread ends with the process.
fn listen() -> mpsc::Receiver<Key> {
    let (sender, receiver) = mpsc::channel(KEYS_MAX);
    std::thread::spawn(move || {
        let (mut parser, mut bytes) = (Parser::default(), [0; 64]);
        while let Ok(n @ 1..) = io::stdin().lock().read(&mut bytes) {
            for byte in bytes.iter().take(n) {
                if let Some(key) = parser.step(*byte)
                    && matches!(sender.try_send(key), Err(mpsc::error::TrySendError::Closed(_)))
                {
                    return;
                }
            }
        }
    });
    receiver
}

/// Tells keys from the bytes that cursor keys and terminals' answers are made of.
#[derive(Debug, Default)]
enum Parser {
    #[default]
    Ground,
    Escape,
    Sequence,
    Text,
}

impl Parser {
    fn step(&mut self, byte: u8) -> Option<Key> {
        let (next, key) = match (&self, byte) {
            (_, 0x1b) => (Self::Escape, None),
            (Self::Ground, _) => (Self::Ground, key(byte)),
            (Self::Escape, b'[' | b'O') => (Self::Sequence, None),
            (Self::Escape, b'P' | b']' | b'_' | b'^' | b'X') => (Self::Text, None),
            (Self::Escape, b'\\') => (Self::Ground, None),
            // Escape was pressed by itself, then something else.
            (Self::Escape, _) => (Self::Ground, key(byte)),
            (Self::Sequence, 0x40..0x7f) => (Self::Ground, None),
            (Self::Sequence, _) => (Self::Sequence, None),
            (Self::Text, 0x07) => (Self::Ground, None),
            (Self::Text, _) => (Self::Text, None),
        };
        *self = next;
        key
    }
}

fn key(byte: u8) -> Option<Key> {
    match byte {
        // Also Ctrl-C, Ctrl-D and Ctrl-\, which make no signals now.
        b'q' | b'Q' | 0x03 | 0x04 | 0x1c => Some(Key::Quit),
        b' ' => Some(Key::Pause),
        b'+' | b'=' => Some(Key::Faster),
        b'-' => Some(Key::Slower),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut parser = Parser::default();
        bytes.iter().filter_map(|byte| parser.step(*byte)).collect()
    }

    #[test]
    fn answers_and_cursor_keys_are_no_keys() {
        assert_eq!(keys(b"q +-x\x03"), [Key::Quit, Key::Pause, Key::Faster, Key::Slower, Key::Quit]);
        assert_eq!(keys(b"\x1b[A\x1b[?62;1c\x1bOq\x1bP1$r0 q\x1b\\\x1b]l q\x07 "), [Key::Pause]);
        assert_eq!(keys(b"\x1bq"), [Key::Quit]);
    }
}
