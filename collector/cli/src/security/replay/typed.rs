//! What was typed, put together to lines.

/// Longest line that is waited for, bytes. A program that reads keys has no line ends.
const LINE_MAX: usize = 1024;

/// Collects typed bytes until Return.
#[derive(Debug, Default)]
pub struct Typed {
    line: Vec<u8>,
}

impl Typed {
    /// Takes typed bytes; returns the lines that they complete, as typed and without the line end.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for byte in bytes {
            match byte {
                b'\r' | b'\n' => lines.push(std::mem::take(&mut self.line)),
                _ => self.line.push(*byte),
            }
            if self.line.len() >= LINE_MAX {
                lines.push(std::mem::take(&mut self.line));
            }
        }
        lines
    }

    /// What is left without a line end.
    pub fn rest(&mut self) -> Option<Vec<u8>> {
        (!self.line.is_empty()).then(|| std::mem::take(&mut self.line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_with_return() {
        let mut typed = Typed::default();
        assert_eq!(typed.feed(b"ls"), Vec::<Vec<u8>>::new());
        assert_eq!(typed.feed(b" -l\rcd\x7f\n\nx"), [b"ls -l".to_vec(), b"cd\x7f".to_vec(), Vec::new()]);
        assert_eq!(typed.rest(), Some(b"x".to_vec()));
        assert_eq!(typed.rest(), None);
        assert_eq!(typed.feed(&[b'a'; 2 * LINE_MAX]).len(), 2);
    }
}
