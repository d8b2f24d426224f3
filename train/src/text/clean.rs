//! What open_clip does to a caption before its tokens: ftfy's `fix_text`, `html.unescape` twice, white space
//! collapsed, lower case. Source: open_clip's `tokenizer.py` and ftfy 6.3.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};
use unicode_normalization::{UnicodeNormalization, is_nfc};

use super::charmap::c1_control;
use super::mojibake::{fix_encoding, remove_terminal_escapes};

/// The caption as the tokenizer sees it.
pub fn clean(caption: &str) -> String {
    let plain = caption.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'&');
    let text = if plain { Cow::Borrowed(caption) } else { Cow::Owned(unescape_twice(&fix_text(caption))) };
    let mut words = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !words.is_empty() {
            words.push(' ');
        }
        words.push_str(word);
    }
    words.to_lowercase()
}

fn unescape_twice(text: &str) -> String {
    unescape(&unescape(text))
}

/// Python's `html.unescape`: by the rules of HTML, but that references to what is no character are left out.
fn unescape(text: &str) -> String {
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| Regex::new("&#(?:[xX]([0-9a-fA-F]+)|([0-9]+));?").expect("a constant pattern"));
    let characters = NUMBER.replace_all(text, |found: &Captures| {
        let (digits, radix) = found.get(1).map_or_else(|| (&found[2], 10), |hex| (hex.as_str(), 16));
        let is_none = u32::from_str_radix(digits, radix).is_ok_and(|code| {
            matches!(code, 1..=8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef) || (code & 0xfffe == 0xfffe && code <= 0x10_ffff)
        });
        if is_none { String::new() } else { found[0].to_string() }
    });
    htmlize::unescape(&*characters).into_owned()
}

/// ftfy's repairs, line by line. HTML entities are left alone from the first line on that has a `<`.
fn fix_text(text: &str) -> String {
    let mut unescape = true;
    text.split_inclusive('\n')
        .map(|line| {
            unescape &= !line.contains('<');
            fix_line(line, unescape)
        })
        .collect()
}

fn fix_line(line: &str, unescape: bool) -> String {
    let mut text = line.to_string();
    loop {
        let before = text.clone();
        if unescape && text.contains('&') {
            text = unescape_entities(&text).into_owned();
        }
        text = fix_encoding(&text).into_owned();
        text = fix_characters(&text);
        text = remove_terminal_escapes(&text).into_owned();
        text.retain(|c| !is_control(c));
        if !is_nfc(&text) {
            text = text.nfc().collect();
        }
        if text == before {
            return text;
        }
    }
}

/// Entities that end in a semicolon, and such in capitals as an over-eager program made them.
fn unescape_entities(text: &str) -> Cow<'_, str> {
    static ENTITY: LazyLock<Regex> = LazyLock::new(|| Regex::new("&#?[0-9A-Za-z]{1,24};").expect("a constant pattern"));
    let whole = |entity: &str| {
        let text = htmlize::unescape(entity).into_owned();
        (text == ";" || !text.ends_with(';')).then_some(text)
    };
    ENTITY.replace_all(text, |found: &Captures| {
        let entity = &found[0];
        let in_capitals = || {
            let capitals = entity == entity.to_uppercase() && htmlize::unescape(entity) == entity;
            capitals.then(|| whole(&entity.to_lowercase())).flatten().map(|text| text.to_uppercase())
        };
        whole(entity).or_else(in_capitals).unwrap_or_else(|| entity.to_string())
    })
}

/// C1 controls, ligatures, full and half width, curly quotes and line breaks.
fn fix_characters(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().map(c1_control).peekable();
    while let Some(c) = chars.next() {
        match c {
            ' '..='~' => out.push(c),
            '\r' => {
                out.push('\n');
                chars.next_if_eq(&'\n');
            }
            '\u{2028}' | '\u{2029}' | '\u{85}' => out.push('\n'),
            '\u{2bc}' | '\u{2018}'..='\u{201b}' => out.push('\''),
            '\u{201c}'..='\u{201f}' => out.push('"'),
            '\u{3000}' => out.push(' '),
            '\u{ff01}'..='\u{ffef}' => out.extend(std::iter::once(c).nfkc()),
            'ŉ' => out.push_str("'n"),
            'ﬅ' => out.push_str("ſt"),
            'Ĳ' | 'ĳ' | 'Ǆ'..='ǌ' | 'Ǳ'..='ǳ' | 'ﬀ'..='ﬆ' => out.extend(std::iter::once(c).nfkc()),
            _ => out.push(c),
        }
    }
    out
}

/// Control characters without a meaning in text, as ftfy lists them.
fn is_control(c: char) -> bool {
    matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}')
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn repairs_what_ftfy_repairs() {
        for (caption, expected) in [
            ("A  Red\tBall\n", "a red ball"),
            ("schÃ¶n", "schön"),
            ("l’humanitÃ©", "l'humanité"),
            ("&lt;b&gt; Caf&eacute; &amp;amp; Bar", "<b> café & bar"),
            ("&NTILDE;andu", "ñandu"),
            ("<i>&eacute;</i>", "<i>é</i>"),
            ("Ｆｕｌｌ　width ﬁsh", "full width fish"),
            ("\u{1b}[31mred\u{1b}[0m", "red"),
            ("e\u{301}", "é"),
            ("a\u{85}b \u{93}quoted\u{94}", "a…b \"quoted\""),
            ("ΟΔΟΣ", "οδος"),
            ("<b>&#7;a&#x7f;b&#xfdd0;c&#150;", "<b>abc–"),
            ("Ã la carte", "à la carte"),
        ] {
            assert_eq!(clean(caption), expected, "{caption:?}");
        }
    }
}
