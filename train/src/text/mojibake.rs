//! Text that was decoded with the wrong encoding ("mojibake"), found and decoded again.
//! The tests for it and their order are those of ftfy 6 (`fix_encoding`), so that captions become the same tokens.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex, bytes};

use super::charmap::{CHARMAPS, Charmap, Name, UTF8_CLUES, c1_control};

/// Classes of characters by how they appear in mojibake, as the insides of a bracket expression.
/// Source: ftfy 6, `badness.MOJIBAKE_CATEGORIES`.
const CLASSES: [(&str, &str); 13] = [
    ("common", "\u{a0}\u{ad}·´–—―…’"),
    ("c1", "\u{80}-\u{9f}"),
    ("bad", "¦¤¨¬¯¸ƒˆˇ˘˛˜†‡‰⌐◊\u{fffd}ªº"),
    ("law", "¶§"),
    ("currency", "¢£¥₧€"),
    ("start", "¡«¿©΄΅‘‚“„•‹\u{f8ff}"),
    ("end", "®»˝”›™"),
    ("numeric", "²³¹±¼½¾×µ÷⁄∂∆∏∑√∞∩∫≈≠≡≤≥№"),
    ("kaomoji", "Ò-ÖÙ-Üò-öø-üŐŌŪŲ°"),
    ("upper", "À-ÑØÜÝĂĀĄĆČĎĐĘĚĒĖĞĢİĪĶĹĽŁĻŃŇŅŒŘŚŞŠŢŤŮŰŸŹŻŽҐ"),
    ("lower", "ßà-ñăąāćčďđęěēėğģįīķĺľłļœŕśşšťüźżžґﬁﬂ"),
    // Those of other alphabets, which words end in.
    ("box", "│┌┐┘├┤┬┼═-╬▀▄█▌▐░▒▓"),
    ("other_upper", "ÞΑ-ΩΆΈΉΊΌΎΏΪΫЁ-Я"),
];
const OTHER_LOWER: &str = "α-ωάέήίΰа-џ";

/// Neighbours that hardly occur but in mojibake. Source: ftfy 6, `badness.BADNESS_RE`.
const UNLIKELY: &[&str] = &[
    "[{c1}]",
    "[{bad}{lower}{upper}{box}{start}{end}{currency}{numeric}{law}][{bad}]",
    "[a-zA-Z][{other_lower}{other_upper}][{bad}]",
    "[{bad}][{lower}{upper}{box}{start}{end}{currency}{numeric}{law}]",
    "[{lower}{other_lower}{box}{end}{currency}{numeric}][{upper}]",
    "[{box}{end}{currency}{numeric}][{lower}]",
    "[{lower}{box}{end}][{currency}]",
    r"\s[{upper}][{currency}]",
    "[{upper}{box}][{numeric}{law}]",
    "[{lower}{upper}{box}{currency}{end}][{start}][{numeric}]",
    "[{lower}{upper}{currency}{numeric}{box}{law}][{end}][{start}]",
    "[{currency}{numeric}{box}][{start}]",
    "[a-z][{upper}][{start}{currency}]",
    "[{box}][{kaomoji}]",
    "[{lower}{upper}{currency}{numeric}{start}{end}{law}][{box}]",
    "[{box}][{end}]",
    r"[{lower}{upper}][{start}{end}]\w",
    "[Œœ][^A-Za-z]",
    "[{upper}]°",
    // Windows-1252: pairs, Arabic, the alphabets of South Asia.
    "[ÂÃÎÐ][€œŠš¢£Ÿž\u{a0}\u{ad}®©°·»{start}{end}–—´]",
    "×[²³]",
    "[ØÙ][{common}{currency}{bad}{numeric}{start}ŸŠ®°µ»][ØÙ][{common}{currency}{bad}{numeric}{start}ŸŠ®°µ»]",
    "à[²µ¹¼½¾]",
    // MacRoman.
    "√[±∂†≠®™´≤≥¥µø]",
    "≈[°¢]",
    "‚Ä[ìîïòôúùû†°¢π]",
    "‚[âó][àä°ê]",
    // Windows-1251.
    "вЂ",
    "[ВГРС][{c1}{bad}{start}{end}{currency}°µ][ВГРС]",
    "ГўВЂВ.[A-Za-z ]",
    // à, á and the no-break space in Windows-1252.
    "Ã[\u{a0}¡]",
    r"[a-z]\s?[ÃÂ][ ]",
    "^[ÃÂ][ ]",
    "[a-z.,?!{end}]Â[ {start}{end}]",
    // Windows-1253 and Windows-1257.
    "β€[™\u{a0}Ά\u{ad}®°]",
    "[ΒΓΞΟ][{c1}{bad}{start}{end}{currency}°][ΒΓΞΟ]",
    "ā€",
];

static BADNESS: LazyLock<Regex> = LazyLock::new(|| {
    let mut pattern = UNLIKELY.join("|").replace("{other_lower}", OTHER_LOWER);
    for (name, class) in CLASSES {
        pattern = pattern.replace(&format!("{{{name}}}"), class);
    }
    Regex::new(&pattern).expect("a constant pattern")
});

/// UTF-8 where byte A0 became a space, in places where that makes a likely character.
static LOST_A0: LazyLock<bytes::Regex> = LazyLock::new(|| {
    let pattern = r"(?-u)[\xc2\xc3\xc5\xce\xd0\xd9][ ]|[\xe2\xe3][ ][\x80-\x84\x86-\x9f\xa1-\xbf]|[\xe0-\xe3][\x80-\x84\x86-\x9f\xa1-\xbf][ ]|\xf0[ ][\x80-\xbf][\x80-\xbf]|\xf0[\x80-\xbf][ ][\x80-\xbf]|\xf0[\x80-\xbf][\x80-\xbf][ ]";
    bytes::Regex::new(pattern).expect("a constant pattern")
});

/// UTF-8 of which bytes became U+FFFD (here byte 1A), or one of them a question mark.
static LOSSY: LazyLock<bytes::Regex> = LazyLock::new(|| {
    let pattern = r"(?-u)[\xc2-\xdf]\x1a|[\xc2-\xc3][?]|\xed[\xa0-\xaf][\x1a?]\xed[\xb0-\xbf][\x1a?\x80-\xbf]|\xed[\xa0-\xaf][\x1a?\x80-\xbf]\xed[\xb0-\xbf][\x1a?]|[\xe0-\xef][\x1a?][\x1a\x80-\xbf]|[\xe0-\xef][\x1a\x80-\xbf][\x1a?]|[\xf0-\xf4][\x1a?][\x1a\x80-\xbf][\x1a\x80-\xbf]|[\xf0-\xf4][\x1a\x80-\xbf][\x1a?][\x1a\x80-\xbf]|[\xf0-\xf4][\x1a\x80-\xbf][\x1a\x80-\xbf][\x1a?]|\x1a";
    bytes::Regex::new(pattern).expect("a constant pattern")
});

/// Java's encoding of U+0000, pairs of surrogates, and single ones.
static UTF8_VARIANT: LazyLock<bytes::Regex> = LazyLock::new(|| {
    let pattern = r"(?-u)\xc0\x80|\xed[\xa0-\xaf][\x80-\xbf]\xed[\xb0-\xbf][\x80-\xbf]|\xed[\xa0-\xbf][\x80-\xbf]";
    bytes::Regex::new(pattern).expect("a constant pattern")
});

fn is_bad(text: &str) -> bool {
    BADNESS.is_match(text)
}

/// Decodes again until nothing looks wrong, or nothing helps.
pub(super) fn fix_encoding(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    while let Some(fixed) = fix_once(&text).filter(|fixed| *fixed != *text) {
        text = Cow::Owned(fixed);
    }
    text
}

fn fix_once(text: &str) -> Option<String> {
    if text.is_ascii() || !is_bad(text) {
        return None;
    }
    if let Some(fixed) = CHARMAPS.iter().find_map(|charmap| decode_again(charmap, text)) {
        return Some(fixed);
    }
    let fixed = fix_parts(text);
    if fixed != text {
        return Some(fixed);
    }
    // Latin-1 that was meant to be Windows-1252: the same text but for the C1 controls.
    Some(text.chars().map(c1_control).collect())
}

/// The text that its bytes under `charmap` are in UTF-8.
fn decode_again(charmap: &Charmap, text: &str) -> Option<String> {
    let mut encoded = charmap.encode(text)?;
    if charmap.name != Name::MacRoman && LOST_A0.is_match(&encoded) {
        encoded = restore_a0(&encoded);
    }
    if charmap.name == Name::Windows {
        encoded = LOSSY.replace_all(&encoded, "\u{fffd}".as_bytes()).into_owned();
    }
    if encoded.iter().any(|byte| matches!(byte, 0xc0 | 0xed)) {
        encoded = UTF8_VARIANT.replace_all(&encoded, variant).into_owned();
    }
    String::from_utf8(encoded).ok()
}

/// A byte A0 that became a space put back; "à" as a word of its own keeps its space, but for Portuguese "às",
/// "àquele", "àquela" and "àquilo".
fn restore_a0(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for (i, &byte) in bytes.iter().enumerate() {
        let rest = &bytes[i + 1..];
        out.push(byte);
        if byte == 0xc3 && rest.first() == Some(&b' ') {
            let word = &rest[1..];
            if ![&b" "[..], b"quele", b"quela", b"quilo", b"s "].iter().any(|start| word.starts_with(start)) {
                out.push(0xa0);
            }
        }
    }
    let put_back = |found: &bytes::Captures| found[0].iter().map(|&b| if b == b' ' { 0xa0 } else { b }).collect::<Vec<u8>>();
    LOST_A0.replace_all(&out, put_back).into_owned()
}

fn variant(found: &bytes::Captures) -> Vec<u8> {
    let sequence = &found[0];
    let unit = |at: usize| 0xd000 | u32::from(sequence[at + 1] & 0x3f) << 6 | u32::from(sequence[at + 2] & 0x3f);
    let decoded = match sequence.len() {
        2 => Some('\0'),
        6 => char::from_u32(0x10000 + ((unit(0) - 0xd800) << 10) + (unit(3) - 0xdc00)),
        _ => None,
    };
    decoded.unwrap_or(char::REPLACEMENT_CHARACTER).to_string().into_bytes()
}

/// Decodes parts of the text that look like UTF-8, each by itself.
fn fix_parts(text: &str) -> String {
    let clues = &*UTF8_CLUES;
    let chars: Vec<char> = text.chars().collect();
    let sequence = |at: usize| {
        (2..=4).find(|&n| {
            let Some(chars) = chars.get(at..at + n) else { return false };
            clues.first[n - 2].contains(&chars[0]) && chars[1..].iter().all(|c| clues.continuation.contains(c))
        })
    };
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    while at < chars.len() {
        let mut end = at;
        if at == 0 || !clues.continuation_strict.contains(&chars[at - 1]) {
            while let Some(n) = sequence(end) {
                end += n;
            }
        }
        if end == at {
            out.push(chars[at]);
            at += 1;
            continue;
        }
        let part: String = chars[at..end].iter().collect();
        // Shorter than the whole, so that this ends.
        let shorter = end - at < chars.len();
        out.push_str(&if shorter && is_bad(&part) { fix_encoding(&part) } else { Cow::Borrowed(part.as_str()) });
        at = end;
    }
    out
}

/// An escape sequence that colours a terminal.
pub(super) fn remove_terminal_escapes(text: &str) -> Cow<'_, str> {
    static ESCAPE: LazyLock<Regex> = LazyLock::new(|| Regex::new("\x1b\\[[\\d;]*[a-zA-Z]").expect("a constant pattern"));
    ESCAPE.replace_all(text, |_: &Captures| "")
}
