//! Challenges that cost nothing to hand out.
//!
//! A nonce is `boot_ns` (8 bytes, big-endian) ‖ random (16) ‖ HMAC-SHA256 (32) of how long it is good and both, under a key made when
//! the agent starts. Nothing is kept for a nonce that was handed out, so asking for a million of them takes nothing from anybody.
//! Kept is only which nonces a *verified* grant has used, until they are stale; wrong proofs never enter that set, so no
//! flood can push a used nonce out and make it usable again.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Length of a nonce, bytes.
pub const NONCE_LEN: usize = 8 + RANDOM_LEN + 32;
/// Length of the random part, bytes.
pub const RANDOM_LEN: usize = 16;
/// How long a nonce is good, seconds: time for somebody to find and touch their key.
pub const VALID_SECONDS: u64 = 60;
/// The same where several people must sign, who have to be found first.
pub const QUORUM_VALID_SECONDS: u64 = 15 * 60;
/// Most used nonces that are remembered. Only verified grants take a place, and a host opens for one at a time.
const USED_MAX: usize = 1024;

const NANOS: u64 = 1_000_000_000;

/// Why a nonce cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonceError {
    /// Not made with this key.
    Forged,
    /// Made longer ago than it was good for, seconds.
    Stale(u64),
    /// Used by an earlier grant.
    Replayed,
    /// More grants were verified within a nonce's time than can be remembered.
    Full,
}

/// How long a nonce is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// [`VALID_SECONDS`].
    Alone,
    /// [`QUORUM_VALID_SECONDS`].
    Together,
}

impl Lasting {
    const ALL: [Self; 2] = [Self::Alone, Self::Together];

    /// What it is for where so many people are to sign.
    pub fn for_signers(signers: usize) -> Self {
        if signers > 1 { Self::Together } else { Self::Alone }
    }

    /// In seconds.
    pub fn seconds(self) -> u64 {
        match self {
            Self::Alone => VALID_SECONDS,
            Self::Together => QUORUM_VALID_SECONDS,
        }
    }
}

/// Makes nonces and recognises them.
pub struct Nonces {
    mac: Hmac<Sha256>,
    /// Used nonce and when it was made, boot nanoseconds.
    used: Mutex<HashMap<[u8; NONCE_LEN], u64>>,
}

impl Nonces {
    /// A book with nothing used; `key` is fresh random bytes.
    pub fn new(key: [u8; 32]) -> Self {
        // HMAC hashes keys that are longer than a block and pads those that are shorter; a block is 64 bytes.
        let mut block = [0; 64];
        block[..32].copy_from_slice(&key);
        Self { mac: Hmac::new(&block.into()), used: Mutex::default() }
    }

    fn mac(&self, lasting: Lasting) -> Hmac<Sha256> {
        self.mac.clone().chain_update(lasting.seconds().to_be_bytes())
    }

    /// A new nonce, from the boot clock in nanoseconds and fresh random bytes.
    pub fn make(&self, boot_ns: u64, random: [u8; RANDOM_LEN], lasting: Lasting) -> [u8; NONCE_LEN] {
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&boot_ns.to_be_bytes());
        nonce[8..8 + RANDOM_LEN].copy_from_slice(&random);
        let mac = self.mac(lasting).chain_update(&nonce[..8 + RANDOM_LEN]).finalize().into_bytes();
        nonce[8 + RANDOM_LEN..].copy_from_slice(&mac);
        nonce
    }

    /// Whether the nonce could be used now; uses nothing up.
    pub fn check(&self, nonce: &[u8], boot_ns: u64) -> Result<(), NonceError> {
        let nonce: &[u8; NONCE_LEN] = nonce.try_into().map_err(|_| NonceError::Forged)?;
        let (made, rest) = nonce.split_first_chunk::<8>().ok_or(NonceError::Forged)?;
        let (random, mac) = rest.split_at(RANDOM_LEN);
        // Compares in constant time.
        let is_good =
            |lasting: &Lasting| self.mac(*lasting).chain_update(made).chain_update(random).verify_slice(mac).is_ok();
        let lasting = Lasting::ALL.into_iter().find(is_good).ok_or(NonceError::Forged)?;
        let made = u64::from_be_bytes(*made);
        // The boot clock does not go back: a nonce from its future is not one of ours.
        let age = boot_ns.checked_sub(made).ok_or(NonceError::Forged)?;
        if age > lasting.seconds() * NANOS {
            return Err(NonceError::Stale(lasting.seconds()));
        }
        if self.used().contains_key(nonce) { Err(NonceError::Replayed) } else { Ok(()) }
    }

    /// Uses the nonce up, for a grant whose every other check has passed.
    /// Of two claims at once on one nonce exactly one succeeds.
    pub fn claim(&self, nonce: &[u8], boot_ns: u64) -> Result<(), NonceError> {
        self.check(nonce, boot_ns)?;
        let nonce: [u8; NONCE_LEN] = nonce.try_into().map_err(|_| NonceError::Forged)?;
        let made = nonce.first_chunk::<8>().map_or(0, |made| u64::from_be_bytes(*made));
        // Those that were good for less are kept for longer than they need.
        let valid = QUORUM_VALID_SECONDS * NANOS;
        let mut used = self.used();
        used.retain(|_, made| boot_ns.saturating_sub(*made) <= valid);
        if used.len() >= USED_MAX {
            return Err(NonceError::Full);
        }
        match used.insert(nonce, made) {
            None => Ok(()),
            Some(_) => Err(NonceError::Replayed),
        }
    }

    fn used(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; NONCE_LEN], u64>> {
        // Every change of the map is a single call: a panic elsewhere cannot leave it half done.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_000 * NANOS;

    #[test]
    fn good_for_a_minute_and_once() {
        let nonces = Nonces::new([1; 32]);
        let nonce = nonces.make(NOW, [2; 16], Lasting::Alone);
        assert_eq!(nonces.check(&nonce, NOW), Ok(()));
        assert_eq!(nonces.check(&nonce, NOW + 60 * NANOS), Ok(()));
        assert_eq!(nonces.check(&nonce, NOW + 60 * NANOS + 1), Err(NonceError::Stale(60)));
        let longer = nonces.make(NOW, [2; 16], Lasting::Together);
        assert_eq!(nonces.check(&longer, NOW + 900 * NANOS), Ok(()));
        assert_eq!(nonces.check(&longer, NOW + 900 * NANOS + 1), Err(NonceError::Stale(900)));
        assert_eq!(nonces.check(&nonce, NOW - 1), Err(NonceError::Forged));
        assert_eq!(nonces.claim(&nonce, NOW), Ok(()));
        assert_eq!(nonces.claim(&nonce, NOW + 1), Err(NonceError::Replayed));
        assert_eq!(nonces.check(&nonce, NOW + 1), Err(NonceError::Replayed));
        assert_eq!(Nonces::new([9; 32]).check(&nonce, NOW), Err(NonceError::Forged), "another agent's key");
    }

    #[test]
    fn a_full_book_refuses_and_forgets_nothing() {
        let nonces = Nonces::new([1; 32]);
        let make = |n: &Nonces, i: usize, at| {
            let mut random = [0; 16];
            random[..8].copy_from_slice(&i.to_be_bytes());
            n.make(at, random, Lasting::Alone)
        };
        for i in 0..USED_MAX {
            let nonce = make(&nonces, i, NOW);
            nonces.claim(&nonce, NOW).unwrap();
        }
        let more = make(&nonces, USED_MAX, NOW);
        assert_eq!(nonces.claim(&more, NOW), Err(NonceError::Full));
        let first = make(&nonces, 0, NOW);
        assert_eq!(nonces.check(&first, NOW), Err(NonceError::Replayed));
        let later = NOW + 901 * NANOS;
        let fresh = make(&nonces, 0, later);
        assert_eq!(nonces.claim(&fresh, later), Ok(()));
        assert_eq!(nonces.used().len(), 1);
    }

    proptest! {
        #[test]
        fn a_changed_nonce_is_forged(at in 0..NONCE_LEN, bit in 0..8u8) {
            let nonces = Nonces::new([1; 32]);
            let mut nonce = nonces.make(NOW, [2; 16], Lasting::Alone);
            nonce[at] ^= 1 << bit;
            prop_assert_eq!(nonces.check(&nonce, NOW), Err(NonceError::Forged));
        }

        #[test]
        fn any_length_is_safe(bytes in proptest::collection::vec(any::<u8>(), 0..100), now: u64) {
            prop_assert!(Nonces::new([1; 32]).check(&bytes, now).is_err());
        }
    }
}
