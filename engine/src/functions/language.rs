use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float32Array, StringBuilder};
use arrow::datatypes::DataType;
use datafusion::logical_expr::ScalarUDF;

use super::external;
use super::function::{About, Function};
use crate::resources::cld3::CLD3;
use crate::resources::{Resources, cld3, fasttext};

/// Functions that tell languages.
pub(super) fn functions(resources: &Arc<Resources>) -> [ScalarUDF; 3] {
    let lang = About {
        syntax: "lang(text)",
        description: "The language of a text by CLD3 (up to 1,000 bytes, newlines as spaces): a code such as 'en', 'zh' or 'ru-Latn'. Nothing to install.",
        arguments: &[("text", "A text.")],
        example: "SELECT lang(text), count(*) FROM pool GROUP BY 1 ORDER BY 2 DESC",
    };
    let lang_score = About {
        syntax: "lang_score(text)",
        description: "How probable CLD3 finds the language that `lang` gives, as a REAL from 0 to 1.",
        arguments: &[("text", "A text.")],
        example: "SELECT uid FROM pool WHERE lang(text) = 'en' AND lang_score(text) > 0.7",
    };
    let lang_fasttext = About {
        syntax: "lang_fasttext(text)",
        description: "The language of a text by a fastText model, `lid.176.bin` or `lid.176.ftz` in the resources folder (`tarn resources`): its label without `__label__`. NULL for a text without a known word or n-gram.",
        arguments: &[("text", "A text; a newline counts as a space.")],
        example: "SELECT count(*) FROM pool WHERE lang_fasttext(text) = 'en'",
    };
    let resources = resources.clone();
    [
        Function::of_text("lang", lang, DataType::Utf8, |texts| {
            let (mut codes, mut scratch) = (StringBuilder::with_capacity(texts.len(), texts.len() * 2), cld3::Scratch::default());
            texts.iter().for_each(|text| codes.append_option(text.map(|text| CLD3.detect(text, &mut scratch).0)));
            Ok(Arc::new(codes.finish()) as ArrayRef)
        }),
        Function::of_text("lang_score", lang_score, DataType::Float32, |texts| {
            let mut scratch = cld3::Scratch::default();
            let scores = texts.iter().map(|text| text.map(|text| CLD3.detect(text, &mut scratch).1));
            Ok(Arc::new(scores.collect::<Float32Array>()) as ArrayRef)
        }),
        Function::of_text("lang_fasttext", lang_fasttext, DataType::Utf8, move |texts| {
            let model = resources.language().map_err(external)?;
            let (mut codes, mut scratch) = (StringBuilder::with_capacity(texts.len(), texts.len() * 2), fasttext::Scratch::default());
            texts.iter().for_each(|text| codes.append_option(text.and_then(|text| Some(model.detect(text, &mut scratch)?.0))));
            Ok(Arc::new(codes.finish()) as ArrayRef)
        }),
    ]
}
