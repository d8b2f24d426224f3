//! The single-byte encodings that UTF-8 is wrongly decoded with. Source: ftfy 6's `chardata`.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use encoding_rs as e;

/// One encoding: the character of each byte and the byte of each character.
pub(super) struct Charmap {
    chars: [char; 256],
    bytes: HashMap<char, u8>,
    pub name: Name,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    Latin1,
    /// A Windows code page whose unassigned bytes are those of Latin-1, and whose byte 1A is U+FFFD.
    Windows,
    Latin2,
    MacRoman,
    Cp437,
}

/// IBM's code page 437, from byte 80 on.
const CP437: &str =
    "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// In the order in which they are tried.
pub(super) static CHARMAPS: LazyLock<Vec<Charmap>> = LazyLock::new(|| {
    let windows = [e::WINDOWS_1252, e::WINDOWS_1251, e::WINDOWS_1250, e::WINDOWS_1253, e::WINDOWS_1254, e::WINDOWS_1257];
    let mut all = vec![Charmap::new(Name::Latin1, char::from)];
    all.extend(windows.map(|encoding| Charmap::new(Name::Windows, |byte| decode(encoding, byte))));
    all.push(Charmap::new(Name::Latin2, |byte| decode(e::ISO_8859_2, byte)));
    all.push(Charmap::new(Name::MacRoman, |byte| decode(e::MACINTOSH, byte)));
    let cp437: Vec<char> = CP437.chars().collect();
    all.push(Charmap::new(Name::Cp437, |byte| if byte < 0x80 { char::from(byte) } else { cp437[usize::from(byte) - 0x80] }));
    all
});

fn decode(encoding: &'static e::Encoding, byte: u8) -> char {
    let bytes = [byte];
    let decoded = encoding.decode_without_bom_handling(&bytes).0;
    decoded.chars().next().filter(|&c| c != char::REPLACEMENT_CHARACTER).unwrap_or(char::from(byte))
}

impl Charmap {
    fn new(name: Name, decode: impl Fn(u8) -> char) -> Charmap {
        let mut chars: [char; 256] = std::array::from_fn(|byte| decode(byte as u8));
        if name == Name::Windows {
            chars[0x1a] = char::REPLACEMENT_CHARACTER;
        }
        Charmap { bytes: chars.iter().zip(0..=255).map(|(&c, byte)| (c, byte)).collect(), chars, name }
    }

    /// The bytes that the text was decoded from, if it was with this encoding.
    pub fn encode(&self, text: &str) -> Option<Vec<u8>> {
        text.chars().map(|c| self.bytes.get(&c).copied()).collect()
    }

    pub fn char(&self, byte: u8) -> char {
        self.chars[usize::from(byte)]
    }
}

/// Windows-1252's character in the place of a C1 control, as browsers have it.
pub(super) fn c1_control(c: char) -> char {
    if ('\u{80}'..='\u{9f}').contains(&c) { CHARMAPS[1].char(c as u8) } else { c }
}

/// Characters that bytes of UTF-8 become under one or another of the encodings that resemble Latin-1.
pub(super) struct Utf8Clues {
    /// First bytes of sequences of 2, 3 and 4.
    pub first: [HashSet<char>; 3],
    pub continuation: HashSet<char>,
    /// Without those that ordinary text has before a word.
    pub continuation_strict: HashSet<char>,
}

pub(super) static UTF8_CLUES: LazyLock<Utf8Clues> = LazyLock::new(|| {
    let of = |bytes: &[u8]| -> HashSet<char> {
        let alike = CHARMAPS.iter().filter(|map| !matches!(map.name, Name::MacRoman | Name::Cp437));
        alike.flat_map(|map| bytes.iter().map(|&byte| map.char(byte))).collect()
    };
    let range = |from: u8, to: u8| (from..=to).collect::<Vec<u8>>();
    let strict: HashSet<char> = of(&range(0x80, 0xbf)).into_iter().filter(|c| !"–—―‘’‚“”„•…".contains(*c)).collect();
    let mut continuation = of(&range(0x80, 0xbf));
    continuation.insert(' ');
    Utf8Clues { first: [of(&range(0xc2, 0xdf)), of(&range(0xe0, 0xef)), of(&[0xf0, 0xf3])], continuation, continuation_strict: strict }
});
