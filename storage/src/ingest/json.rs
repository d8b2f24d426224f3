//! A shard's JSON, read member by member: what is wrong with one value costs that value alone.

use std::borrow::Cow;

/// An object's members: each name with its value as it is written.
pub(super) struct Object<'a>(Vec<(String, &'a str)>);

/// A string with what had to be replaced in it.
#[derive(Debug, PartialEq)]
pub(super) struct Text {
    pub text: String,
    /// Holds U+FFFD for half of a surrogate pair, or an escape that JSON does not know.
    pub mended: bool,
}

/// Decodes a member's bytes: without a byte order mark and the NULs behind it, and U+FFFD for what is not UTF-8.
pub(super) fn decode(bytes: &[u8]) -> Cow<'_, str> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    String::from_utf8_lossy(&bytes[..end])
}

impl<'a> Object<'a> {
    /// Splits `json` into members. An error says what is wrong with the object as a whole; values are not looked into.
    pub fn parse(json: &'a str) -> Result<Object<'a>, String> {
        let mut members = Vec::new();
        let mut rest = json.trim_start().strip_prefix('{').ok_or("expected an object")?.trim_start();
        loop {
            if rest.starts_with('}') && members.is_empty() {
                break;
            }
            let wrong = |what: &str, rest: &str| format!("expected {what} at byte {}", json.len() - rest.len());
            let name = value(rest).filter(|name| name.starts_with('"')).ok_or_else(|| wrong("a name", rest))?;
            rest = rest[name.len()..].trim_start();
            rest = rest.strip_prefix(':').ok_or_else(|| wrong("':'", rest))?.trim_start();
            let this = value(rest).ok_or_else(|| wrong("a value", rest))?;
            members.push((unquote(name).text, this));
            rest = rest[this.len()..].trim_start();
            match rest.strip_prefix(',') {
                Some(next) => rest = next.trim_start(),
                None if rest.starts_with('}') => break,
                None => return Err(wrong("',' or '}'", rest)),
            }
        }
        match rest[1..].trim() {
            "" => Ok(Object(members)),
            _ => Err("something follows the object".into()),
        }
    }

    /// Returns the value of the last member of this name, or else of the last whose name differs in case alone; none
    /// for `null` and what Python writes where a number is missing.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        let exact = self.0.iter().rev().find(|(n, _)| n == name);
        let found = exact.or_else(|| self.0.iter().rev().find(|(n, _)| n.eq_ignore_ascii_case(name)));
        found.map(|(_, value)| *value).filter(|value| !["null", "NaN", "Infinity", "-Infinity"].contains(value))
    }
}

/// Returns the value that `json` begins with: a string, whatever lies between brackets, or a word; none where it does
/// not end.
pub(super) fn value(json: &str) -> Option<&str> {
    let mut depth = 0usize;
    let bytes = json.as_bytes();
    let mut i = 0;
    loop {
        match bytes.get(i)? {
            b'"' => {
                i += 1;
                while *bytes.get(i)? != b'"' {
                    i += if bytes[i] == b'\\' { 2 } else { 1 };
                }
                i += 1;
            }
            b'{' | b'[' => {
                depth += 1;
                i += 1;
            }
            b'}' | b']' if depth > 0 => {
                depth -= 1;
                i += 1;
            }
            b',' | b':' if depth > 0 => i += 1,
            b' ' | b'\n' | b'\r' | b'\t' if depth > 0 => i += 1,
            b',' | b':' | b'}' | b']' => break,
            _ => i += bytes[i..].iter().position(|b| b",:{}[]\" \n\r\t".contains(b)).unwrap_or(bytes.len() - i),
        }
        if depth == 0 {
            break;
        }
    }
    (i > 0).then(|| &json[..i])
}

/// Returns the elements of an array as they are written; none where it is no array.
pub(super) fn elements(json: &str) -> Option<Vec<&str>> {
    let mut rest = json.strip_prefix('[')?.strip_suffix(']')?.trim_start();
    let mut elements = Vec::new();
    while !rest.is_empty() {
        let this = value(rest)?;
        elements.push(this);
        rest = rest[this.len()..].trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
    Some(elements)
}

/// Returns the text of a string; none where it is no string.
pub(super) fn text(json: &str) -> Option<Text> {
    (json.len() >= 2 && json.starts_with('"')).then(|| unquote(json))
}

fn unquote(json: &str) -> Text {
    let mut chars = json[1..json.len() - 1].chars();
    let (mut text, mut mended) = (String::with_capacity(json.len()), false);
    while let Some(c) = chars.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        let escaped = match chars.next() {
            Some('b') => Some('\u{8}'),
            Some('f') => Some('\u{c}'),
            Some('n') => Some('\n'),
            Some('r') => Some('\r'),
            Some('t') => Some('\t'),
            Some(c @ ('"' | '\\' | '/')) => Some(c),
            Some('u') => unicode(&mut chars),
            _ => None,
        };
        mended |= escaped.is_none();
        text.push(escaped.unwrap_or(char::REPLACEMENT_CHARACTER));
    }
    Text { text, mended }
}

/// Reads the digits behind `\u`, and the second half of a surrogate pair; none for half a pair, which is passed over.
fn unicode(chars: &mut std::str::Chars) -> Option<char> {
    let four = |chars: &mut std::str::Chars| {
        let digits = chars.as_str().get(..4).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *chars = chars.as_str()[4..].chars();
        u32::from_str_radix(digits, 16).ok()
    };
    let high = four(chars)?;
    if !(0xd800..0xdc00).contains(&high) {
        return char::from_u32(high);
    }
    let mut ahead = chars.clone();
    let low = (ahead.next() == Some('\\') && ahead.next() == Some('u')).then(|| four(&mut ahead)).flatten();
    let low = low.filter(|low| (0xdc00..0xe000).contains(low))?;
    *chars = ahead;
    char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(json: &str, name: &str) -> Option<String> {
        Object::parse(json).unwrap().get(name).map(str::to_string)
    }

    #[test]
    fn values_are_found_whatever_is_beside_them() {
        let json = r#"{"a": [1, {"b": "]}"}], "n": 1e999, "deep": [[[[]]]], "é": {}, "s": "x\"y", "z": null, "s": "last"}"#;
        assert_eq!(get(json, "a").as_deref(), Some(r#"[1, {"b": "]}"}]"#));
        assert_eq!(get(json, "n").as_deref(), Some("1e999"));
        assert_eq!(get(json, "s").as_deref(), Some("\"last\""));
        assert_eq!((get(json, "z"), get(json, "none")), (None, None));
        assert_eq!(get(r#"{"TEXT": "a", "Url": "b"}"#, "text").as_deref(), Some("\"a\""));
        assert_eq!(get("{}", "a"), None);
        assert_eq!(get(&format!("{{\"d\": {}{}, \"x\": 1}}", "[".repeat(100_000), "]".repeat(100_000)), "x").as_deref(), Some("1"));
        assert_eq!(elements(r#"["a", [1, 2], null]"#).unwrap(), ["\"a\"", "[1, 2]", "null"]);
        assert_eq!(elements("[]").unwrap(), [""; 0]);
        assert_eq!(elements("5"), None);
    }

    #[test]
    fn broken_objects_are_errors() {
        for json in
            ["", "[1]", "{", "{\"a\"", "{\"a\":", "{\"a\":1", "{\"a\":1,", "{\"a\":\"x}", "{\"a\":[1}", "{a:1}", "{\"a\":1} x", "{\"a\"}"]
        {
            assert!(Object::parse(json).is_err(), "{json}");
        }
    }

    #[test]
    fn halves_of_pairs_are_replaced() {
        let of = |json: &str| text(json).map(|t| (t.text, t.mended));
        assert_eq!(of(r#""\ud83d\ude00 \u00e9\n""#), Some(("😀 é\n".into(), false)));
        for json in [r#""\ud83d here""#, r#""\udc00 here""#, r#""\ud83d\ud83d here""#, r#""\u12 here""#, r#""\x here""#] {
            let (text, mended) = of(json).unwrap();
            assert!(mended && text.contains('\u{fffd}') && text.ends_with(" here"), "{json}: {text}");
        }
        assert_eq!(of(r#""\ud83d\u0041""#), Some(("\u{fffd}A".into(), true)));
        assert_eq!(of("5"), None);
        assert_eq!(decode(b"\xef\xbb\xbf{}\0\0"), "{}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(json in "[{}\\[\\]:,\"\\\\u0-9a\u{e9} \n]{0,40}") {
            if let Ok(object) = Object::parse(&json) {
                for (_, value) in object.0 {
                    let _ = (text(value), elements(value));
                }
            }
        }

        #[test]
        fn strings_come_back(s in ".{0,40}") {
            let json = serde_json::to_string(&s).unwrap();
            proptest::prop_assert_eq!(text(&json), Some(Text { text: s, mended: false }));
        }
    }
}
