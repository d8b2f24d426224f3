use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// The 128-bit name of a sample; 32 hexadecimal digits wherever a person sees it.
///
/// Ordered as a big-endian number, which is the order of its text and of DataComp's `(high, low)` pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uid(pub [u8; 16]);

impl Uid {
    /// From the high and low half, as a subset's `.npy` stores them.
    pub fn from_halves(high: u64, low: u64) -> Uid {
        Uid(((u128::from(high) << 64) | u128::from(low)).to_be_bytes())
    }

    /// The high and the low half.
    pub fn halves(self) -> (u64, u64) {
        let value = u128::from_be_bytes(self.0);
        ((value >> 64) as u64, value as u64)
    }

    /// The uid made for a sample that came without one: the first 16 bytes of
    /// SHA-256 over url, a zero byte, and text.
    pub fn of_pair(url: &str, text: &str) -> Uid {
        let mut digest = Sha256::new();
        digest.update(url);
        digest.update([0]);
        digest.update(text);
        let mut uid = [0; 16];
        uid.copy_from_slice(&digest.finalize()[..16]);
        Uid(uid)
    }
}

impl Uid {
    /// Returns the uid made for a sample of a shard that came without uid and url: the first 16 bytes of SHA-256 over
    /// the image's SHA-256, then text, key and the shard's file name with a zero byte after each.
    pub fn of_sample(image: &[u8], text: &str, key: &str, shard: &str) -> Uid {
        let mut digest = Sha256::new();
        digest.update(Sha256::digest(image));
        for part in [text, key, shard] {
            digest.update(part);
            digest.update([0]);
        }
        let mut uid = [0; 16];
        uid.copy_from_slice(&digest.finalize()[..16]);
        Uid(uid)
    }
}

impl FromStr for Uid {
    type Err = Error;

    fn from_str(text: &str) -> Result<Uid> {
        let mut uid = [0; 16];
        // A UUID may have its hyphens.
        let is_hyphenated = text.len() == 36 && [8, 13, 18, 23].iter().all(|&i| text.as_bytes()[i] == b'-');
        let whole = if is_hyphenated { hex_decode(&text.replace('-', ""), &mut uid) } else { hex_decode(text, &mut uid) };
        if whole { Ok(Uid(uid)) } else { Err(Error::Uid { text: text.to_string() }) }
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex_encode(&self.0))
    }
}

/// Fills `out` from exactly twice as many hexadecimal digits of either case.
pub(crate) fn hex_decode(text: &str, out: &mut [u8]) -> bool {
    let digits = text.as_bytes();
    if digits.len() != 2 * out.len() {
        return false;
    }
    // By index: it is hot, and the crate is compiled for a short build.
    let (mut bad, mut i) = (0, 0);
    while i < out.len() {
        let (high, low) = (NIBBLES[digits[2 * i] as usize], NIBBLES[digits[2 * i + 1] as usize]);
        bad |= high | low;
        out[i] = high << 4 | low & 15;
        i += 1;
    }
    bad < 16
}

/// The value of each hexadecimal digit, 255 for other bytes.
const NIBBLES: [u8; 256] = {
    let mut table = [255; 256];
    let mut i = 0;
    while i < 16 {
        table[b"0123456789abcdef"[i] as usize] = i as u8;
        table[b"0123456789ABCDEF"[i] as usize] = i as u8;
        i += 1;
    }
    table
};

/// Lower-case hexadecimal digits.
pub(crate) fn hex_encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)] as char);
        text.push(DIGITS[usize::from(byte & 15)] as char);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_halves_and_order_agree() {
        let text = "00f1a2b3c4d5e6f708192a3b4c5d6e7f";
        let uid: Uid = text.parse().unwrap();
        assert_eq!(uid.to_string(), text);
        let (high, low) = uid.halves();
        assert_eq!((high, low), (0x00f1_a2b3_c4d5_e6f7, 0x0819_2a3b_4c5d_6e7f));
        assert_eq!(Uid::from_halves(high, low), uid);
        assert!(uid < "01000000000000000000000000000000".parse().unwrap());
        assert_eq!(text.to_uppercase().parse::<Uid>().unwrap(), uid);
        assert_eq!("00f1a2b3-c4d5-e6f7-0819-2a3b4c5d6e7f".parse::<Uid>().unwrap(), uid);
    }

    #[test]
    fn refuses_what_is_not_32_digits() {
        for text in
            ["", "00f1", "zz f1a2b3c4d5e6f708192a3b4c5d6e7f", "00f1a2b3c4d5e6f708192a3b4c5d6e7é", "00f1a2b3-c4d5-e6f7-0819-2a3b4c5d6e7-"]
        {
            assert!(text.parse::<Uid>().is_err(), "{text}");
        }
    }

    #[test]
    fn made_uid_is_stable() {
        // python: hashlib.sha256(b"http://a/b.jpg" + b"\0" + b"a cat").hexdigest()[:32]
        assert_eq!(Uid::of_pair("http://a/b.jpg", "a cat").to_string(), "73cb5dcc048eb703f698afb5a7e6d08b");
    }
}
