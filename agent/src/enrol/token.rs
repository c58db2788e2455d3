//! A one-time token, as a person carries it: see `collector/src/enrol/token.rs`.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::EnrolError;

const PREFIX: &str = "bge1.";
const ID_LEN: usize = 8;
const SECRET_LEN: usize = 32;
const HASH_LEN: usize = 32;

/// A token's parts.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What the collector finds it by.
    pub id: String,
    /// What proves that whoever has it was given it.
    pub secret: Vec<u8>,
    /// SHA-256 of the collector's CA certificate, DER.
    pub authority: [u8; HASH_LEN],
}

impl Token {
    /// Parses a token; white space around it does not matter.
    pub fn parse(text: &str) -> Result<Self, EnrolError> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(EnrolError::Token)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| EnrolError::Token)?;
        let (id, rest) = bytes.split_at_checked(ID_LEN).ok_or(EnrolError::Token)?;
        let (secret, authority) = rest.split_at_checked(SECRET_LEN).ok_or(EnrolError::Token)?;
        let authority = authority.try_into().map_err(|_| EnrolError::Token)?;
        Ok(Self { id: hex::encode(id), secret: secret.to_vec(), authority })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_whole_token_is_taken_apart() {
        let bytes: Vec<u8> = (0..72).collect();
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&bytes));
        assert_eq!(text.len(), 101, "as the message says");
        let token = Token::parse(&format!(" {text}\n")).ok().unwrap();
        assert_eq!(
            (token.id.as_str(), &token.secret[..], &token.authority[..]),
            ("0001020304050607", &bytes[8..40], &bytes[40..])
        );
        for end in 0..text.len() {
            assert!(Token::parse(&text[..end]).is_err(), "{end}");
        }
        assert!(Token::parse(&format!("{text}AAAA")).is_err());
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "\\PC{0,120}") {
            let _ = Token::parse(&text);
            let _ = Token::parse(&format!("{PREFIX}{text}"));
        }
    }
}
