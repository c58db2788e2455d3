//! What a terminal showed and what was typed at it, as lines of text.
//!
//! Output runs through a terminal emulator ([`screen`]), so that a word that was typed with a mistake and corrected is found as
//! it stood on the screen in the end. Input is assembled into lines ([`typed`]) with the same care for corrections. Both are
//! functions of the recorded events alone, in their order: however often work is interrupted, saved and taken up again, the
//! same lines come out.

mod amplify;
pub mod screen;
pub mod typed;

use serde::{Deserialize, Serialize};

use self::screen::Screen;
use self::typed::Typed;

/// A line that is final.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// Stood on the screen.
    Shown(String),
    /// Was typed.
    Typed(String),
}

/// The transcript of one terminal as it grows.
#[derive(Default)]
pub struct Transcript {
    screen: Screen,
    typed: Typed,
}

/// All of a transcript that has to be kept to go on with it later.
#[derive(Serialize, Deserialize)]
struct Saved {
    screen: screen::Saved,
    typed: Typed,
}

impl Transcript {
    /// Takes up a transcript that was saved; `None` if the bytes are not one.
    pub fn restore(bytes: &[u8]) -> Option<Self> {
        let saved: Saved = serde_json::from_slice(bytes).ok()?;
        Some(Self { screen: Screen::restore(saved.screen), typed: saved.typed })
    }

    /// The transcript as bytes for [`Self::restore`].
    pub fn save(&self) -> Vec<u8> {
        let saved = Saved { screen: self.screen.save(), typed: self.typed.clone() };
        // Strings and numbers only: this cannot fail, and an empty state is a fresh start.
        serde_json::to_vec(&saved).unwrap_or_default()
    }

    /// The terminal showed `data`, in a window of `rows` and `cols` (0: unknown). Returns lines that became final.
    pub fn output(&mut self, data: &[u8], rows: u32, cols: u32) -> Vec<Line> {
        self.screen.feed(data, rows, cols).into_iter().map(Line::Shown).collect()
    }

    /// `data` was typed. Returns lines that became final.
    pub fn input(&mut self, data: &[u8]) -> Vec<Line> {
        self.typed.feed(data).into_iter().map(Line::Typed).collect()
    }

    /// What can be seen now and is not final: the lines on the screen and the line being typed.
    pub fn current(&self) -> Vec<Line> {
        let shown = self.screen.visible().into_iter().map(Line::Shown);
        shown.chain(self.typed.unfinished().map(Line::Typed)).collect()
    }
}
