//! Argument vectors that the probe runs and the tests expect to find in the record.

/// Largest single argument the kernel takes, with its end (`MAX_ARG_STRLEN`, 32 pages).
const ARGUMENT_MAX: usize = 128 * 1024;

/// Length of the pieces of a large vector: below [`ARGUMENT_MAX`] and no multiple of a page, so that pieces lie across pages.
const PIECE: usize = ARGUMENT_MAX - 4099;

/// A vector of `bytes` bytes in all, each argument counted with its end. No two places of it are alike, so that a lost, doubled or
/// moved part shows.
pub fn large(bytes: usize) -> Vec<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut arguments = Vec::new();
    let mut left = bytes;
    while left > 0 {
        let length = left.min(PIECE) - 1;
        arguments.push((0..length).map(|_| printable(&mut state)).collect());
        left -= length + 1;
    }
    arguments
}

/// Arguments that printing and parsing go wrong on: empty, newlines, control characters, escape sequences, invalid UTF-8, every
/// byte but zero.
pub fn odd() -> Vec<Vec<u8>> {
    vec![
        b"odd".to_vec(),
        Vec::new(),
        b"two\nlines\r\n".to_vec(),
        b"\x1b[2J\x1b]0;title\x07\x1b[31m".to_vec(),
        b"\xff\xfe\xc0\xaf\xed\xa0\x80".to_vec(),
        b"\xe2\x80\xae right to left".to_vec(),
        b"'; drop table commands; --".to_vec(),
        (1..=255).collect(),
        Vec::new(),
    ]
}

/// xorshift64: repeatable, and enough to make places differ.
fn printable(state: &mut u64) -> u8 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    b'!' + (*state % 94) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_has_exactly_the_size_asked_for() {
        for bytes in [1, 2, PIECE, PIECE + 1, 1_500_000] {
            let vector = large(bytes);
            assert_eq!(vector.iter().map(|argument| argument.len() + 1).sum::<usize>(), bytes);
            assert!(vector.iter().all(|argument| argument.len() < ARGUMENT_MAX && !argument.contains(&0)));
        }
    }
}
