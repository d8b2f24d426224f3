use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float32Builder, ListBuilder};
use arrow::datatypes::{DataType, Field};
use datafusion::common::Result;
use datafusion::logical_expr::{ScalarUDF, Signature, TypeSignature, Volatility};

use super::function::{About, Arguments, Function, texts};

/// A model that turns texts and images into vectors. The engine knows no more of models than this.
pub trait Embed: Send + Sync {
    /// The text's vector by the checkpoint at `model`, or by the one that is meant where none is named.
    fn text(&self, text: &str, model: Option<&str>) -> Result<Vec<f32>, Box<dyn std::error::Error + Send + Sync>>;
    /// The same of an image file.
    fn image(&self, path: &str, model: Option<&str>) -> Result<Vec<f32>, Box<dyn std::error::Error + Send + Sync>>;
}

/// `embed_text` and `embed_image`.
pub(super) fn functions(embed: &Arc<dyn Embed>) -> [ScalarUDF; 2] {
    let text = About {
        syntax: "embed_text(text [, model])",
        description: "The normalised vector of a text by a checkpoint, as a list of REAL. The same text is embedded once a batch; constants once a query.",
        arguments: &[("text", "A text."), ("model", "A run's or a checkpoint's folder; without it the one that TARN_MODEL names.")],
        example: "SELECT uid FROM pool ORDER BY cosine_distance(mine_img, embed_text('a dog', 'runs/mine')) LIMIT 10",
    };
    let image = About {
        syntax: "embed_image(path [, model])",
        description: "The normalised vector of an image file by a checkpoint, as a list of REAL.",
        arguments: &[("path", "An image file."), ("model", "A run's or a checkpoint's folder; without it the one that TARN_MODEL names.")],
        example: "SELECT uid FROM pool ORDER BY cosine_distance(mine_img, embed_image('dog.jpg', 'runs/mine')) LIMIT 10",
    };
    let signature = || Signature::one_of(vec![TypeSignature::String(1), TypeSignature::String(2)], Volatility::Immutable);
    let returns = || DataType::List(Arc::new(Field::new_list_field(DataType::Float32, true)));
    let (for_text, for_image) = (embed.clone(), embed.clone());
    [
        Function::udf("embed_text", text, signature(), returns(), move |args| vectors(args, |text, model| for_text.text(text, model))),
        Function::udf("embed_image", image, signature(), returns(), move |args| vectors(args, |path, model| for_image.image(path, model))),
    ]
}

type Embedded = Result<Vec<f32>, Box<dyn std::error::Error + Send + Sync>>;

fn vectors(args: &Arguments, embed: impl Fn(&str, Option<&str>) -> Embedded) -> Result<ArrayRef> {
    let sources = texts(&args.arrays[0])?;
    let models = args.arrays.get(1).map(texts).transpose()?;
    let mut lists = ListBuilder::new(Float32Builder::new());
    for i in 0..args.rows {
        let i_of = |array: &dyn Array| if array.len() == 1 { 0 } else { i };
        let source = i_of(&sources);
        let model = models.as_ref().map(|models| (models, i_of(models)));
        if sources.is_null(source) || model.is_some_and(|(models, i)| models.is_null(i)) {
            lists.append_null();
            continue;
        }
        let vector = embed(sources.value(source), model.map(|(models, i)| models.value(i)));
        lists.values().append_slice(&vector.map_err(datafusion::common::DataFusionError::External)?);
        lists.append(true);
    }
    Ok(Arc::new(lists.finish()))
}
