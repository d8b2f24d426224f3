use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use datafusion::logical_expr::{ScalarUDF, Signature, Volatility};
use index::Metric;

use super::function::{About, Function};
use super::synset::constant;
use super::{Sets, external};

const A: (&str, &str) = ("a", "A vector: an embedding column, read in place where it is of float16 or float32, or a list of numbers.");
const B: (&str, &str) = ("b", "A vector of the same length.");

/// Distances between vectors, and to the vectors of named sets.
pub(super) fn functions(sets: &Arc<Sets>) -> Vec<ScalarUDF> {
    let metrics = [
        (
            "cosine_similarity",
            Metric::CosineSimilarity,
            About {
                syntax: "cosine_similarity(a, b)",
                description: "The cosine of the angle between two vectors, as a REAL. NULL where either is all zeros.",
                arguments: &[A, B],
                example: "SELECT uid, cosine_similarity(l14_img, l14_txt) AS score FROM pool ORDER BY score DESC LIMIT 10",
            },
        ),
        (
            "cosine_distance",
            Metric::CosineDistance,
            About {
                syntax: "cosine_distance(a, b)",
                description: "1 less the cosine of the angle between two vectors, as a REAL. NULL where either is all zeros.",
                arguments: &[A, B],
                example: "SELECT uid FROM pool ORDER BY cosine_distance(l14_img, embedding('51f492b1c9a539c791dc0ea14b054b69', 'l14_img')) LIMIT 10",
            },
        ),
        (
            "inner_product",
            Metric::InnerProduct,
            About {
                syntax: "inner_product(a, b)",
                description: "The sum of the products of two vectors' numbers, as a REAL.",
                arguments: &[A, B],
                example: "SELECT avg(inner_product(b32_img, b32_txt)) FROM pool",
            },
        ),
        (
            "l2_distance",
            Metric::L2Distance,
            About {
                syntax: "l2_distance(a, b)",
                description: "The Euclidean distance between two vectors, as a REAL (not squared).",
                arguments: &[A, B],
                example: "SELECT l2_distance([0.0, 0.0], [3.0, 4.0])",
            },
        ),
    ];
    let metrics = metrics.into_iter().map(|(name, metric, about)| {
        Function::udf(name, about, Signature::any(2, Volatility::Immutable), DataType::Float32, move |args| {
            let values = index::measure(metric, &args.arrays[0], &args.arrays[1], args.rows).map_err(external)?;
            Ok(Arc::new(values) as ArrayRef)
        })
    });
    metrics.chain(of_sets(sets)).collect()
}

fn of_sets(sets: &Arc<Sets>) -> [ScalarUDF; 2] {
    let nearest_centroid = About {
        syntax: "nearest_centroid(vector, set)",
        description: "The id of the vector of a named set with the largest inner product, exact in float32; of equals the first.",
        arguments: &[
            ("vector", "A vector as long as those of the set."),
            ("set", "The name of a vector set of the pool (`tarn vectors POOL list`), a constant."),
        ],
        example: "SELECT nearest_centroid(l14_img, 'centroids') AS cluster, count(*) FROM pool GROUP BY cluster",
    };
    let max_similarity = About {
        syntax: "max_similarity(vector, set)",
        description: "The largest inner product with a vector of a named set, as a REAL: NormSim where the set holds the targets' embeddings.",
        arguments: &[
            ("vector", "A vector as long as those of the set."),
            ("set", "The name of a vector set of the pool (`tarn vectors POOL list`), a constant."),
        ],
        example: "SELECT uid FROM pool ORDER BY max_similarity(l14_img, 'targets') DESC LIMIT 1000",
    };
    let (for_nearest, for_most) = (sets.clone(), sets.clone());
    let any = || Signature::any(2, Volatility::Immutable);
    [
        Function::udf("nearest_centroid", nearest_centroid, any(), DataType::Int32, move |args| {
            let Some(name) = constant(&args.arrays[1])? else { return Ok(arrow::array::new_null_array(&DataType::Int32, args.rows)) };
            Ok(Arc::new(for_nearest.get(&name)?.nearest(&args.arrays[0]).map_err(external)?) as ArrayRef)
        }),
        Function::udf("max_similarity", max_similarity, any(), DataType::Float32, move |args| {
            let Some(name) = constant(&args.arrays[1])? else { return Ok(arrow::array::new_null_array(&DataType::Float32, args.rows)) };
            Ok(Arc::new(for_most.get(&name)?.max_similarity(&args.arrays[0]).map_err(external)?) as ArrayRef)
        }),
    ]
}
