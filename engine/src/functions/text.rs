use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, Int64Array, StringArray};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::ScalarUDF;
use instant_clip_tokenizer::Tokenizer;

use super::function::{About, Function};
use crate::resources::fasttext;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(Tokenizer::new);

/// Functions that count in captions.
pub(super) fn functions() -> [ScalarUDF; 3] {
    let word_count = About {
        syntax: "word_count(text)",
        description: "How many words a text has: runs of characters between Unicode white space, as Python's `len(text.split())`.",
        arguments: &[("text", "A text.")],
        example: "SELECT count(*) FROM pool WHERE word_count(text) > 2",
    };
    let fasttext_token_count = About {
        syntax: "fasttext_token_count(text)",
        description: "How many tokens fastText makes of a text, as `len(fasttext.tokenize(text))`: ASCII white space separates them, and each newline is one.",
        arguments: &[("text", "A text.")],
        example: "SELECT count(*) FROM pool WHERE fasttext_token_count(text) > 1",
    };
    let clip_token_count = About {
        syntax: "clip_token_count(text)",
        description: "How many tokens of CLIP's byte-pair encoding a text has, without those that mark its start and end. A model reads the first 75.",
        arguments: &[("text", "A text.")],
        example: "SELECT count(*) FROM pool WHERE clip_token_count(text) > 75",
    };
    [
        Function::of_text("word_count", word_count, DataType::Int64, |texts| each(texts, words)),
        Function::of_text("fasttext_token_count", fasttext_token_count, DataType::Int64, |texts| each(texts, fasttext_tokens)),
        Function::of_text("clip_token_count", clip_token_count, DataType::Int64, |texts| {
            let mut tokens = Vec::new();
            each(texts, |text| {
                tokens.clear();
                TOKENIZER.encode(text, &mut tokens);
                tokens.len() as i64
            })
        }),
    ]
}

/// A number for each text, without a branch on nulls: what stands behind them is counted in vain.
fn each(texts: &StringArray, mut count: impl FnMut(&str) -> i64) -> Result<ArrayRef> {
    let counts: Vec<i64> = (0..texts.len()).map(|i| count(texts.value(i))).collect();
    Ok(Arc::new(Int64Array::new(ScalarBuffer::from(counts), texts.nulls().cloned())))
}

/// White space as Python's `str.split()` has it: Unicode's, and the four separators U+001C to U+001F.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The same for ASCII, in a form that becomes vector instructions.
#[inline(always)]
fn is_ascii_space(byte: u8) -> bool {
    (byte == b' ') | (byte.wrapping_sub(9) < 5) | (byte.wrapping_sub(0x1c) < 4)
}

fn words(text: &str) -> i64 {
    if text.is_ascii() {
        return starts(text.as_bytes(), is_ascii_space);
    }
    text.split(is_space).filter(|word| !word.is_empty()).count() as i64
}

/// How many runs of bytes that are no space there are: where one follows a space or nothing.
#[inline(always)]
fn starts(bytes: &[u8], is_space: fn(u8) -> bool) -> i64 {
    let Some(first) = bytes.first() else { return 0 };
    // Sums of at most 255 fit a byte, so that 32 or 64 are added at once.
    let mut count = i64::from(!is_space(*first));
    for block in 0..(bytes.len() - 1).div_ceil(255) {
        let from = block * 255;
        let to = (from + 255).min(bytes.len() - 1);
        let pairs = bytes[from..to].iter().zip(&bytes[from + 1..=to]);
        count += i64::from(pairs.map(|(before, byte)| u8::from(is_space(*before) & !is_space(*byte))).sum::<u8>());
    }
    count
}

fn fasttext_tokens(text: &str) -> i64 {
    let newlines = text.bytes().filter(|byte| *byte == b'\n').count() as i64;
    let words = text.as_bytes().split(|byte| fasttext::is_space(*byte)).filter(|word| !word.is_empty()).count() as i64;
    words + newlines
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counts_as_python_splits() {
        for (text, n) in [("", 0), ("  \n", 0), ("a", 1), (" a  b\u{a0}c\u{2003}d ", 4), ("a\u{1c}b", 2), ("a\u{200b}b", 1)] {
            assert_eq!(words(text), n, "{text:?}");
        }
        assert_eq!(words(&"ab ".repeat(1000)), 1000);
    }

    #[test]
    fn counts_as_fasttext_tokenizes() {
        for (text, n) in [("", 0), ("a b", 2), ("a\nb", 3), ("\n\n", 2), ("a\u{a0}b", 1), ("a\0b\u{b}c", 3)] {
            assert_eq!(fasttext_tokens(text), n, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn the_fast_path_counts_as_the_plain_one(text in "[ -~\\t\\n\\x0b\\x1c-\\x20]{0,600}") {
            prop_assert_eq!(words(&text), text.split(is_space).filter(|word| !word.is_empty()).count() as i64);
        }
    }
}
