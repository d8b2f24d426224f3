use std::sync::Arc;

use arrow::array::FixedSizeListArray;
use lance::index::vector::VectorIndexParams;
use lance_index::IndexType;
use lance_index::vector::bq::RQBuildParams;
use lance_index::vector::hnsw::builder::HnswBuildParams;
use lance_index::vector::ivf::IvfBuildParams;
use lance_index::vector::pq::PQBuildParams;
use lance_index::vector::sq::builder::SQBuildParams;
use lance_linalg::distance::MetricType;

use crate::{Distance, Error, Result};

/// The kinds of indexes that Lance makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    IvfFlat,
    IvfSq,
    IvfPq,
    IvfRq,
    IvfHnswFlat,
    IvfHnswSq,
    IvfHnswPq,
    BTree,
    Bitmap,
    ZoneMap,
    BloomFilter,
    LabelList,
    FullText,
    NGram,
}

/// Each kind, its name in SQL, Lance's word for it, and what it is for.
pub const KINDS: [(Kind, &str, &str, &str); 14] = [
    (Kind::IvfRq, "ivf_rq", "IVF_RQ", "vectors: 5 bits a number (RaBitQ), candidates looked at again; the first choice"),
    (Kind::IvfFlat, "ivf_flat", "IVF_FLAT", "vectors: as they are, exact within the partitions probed"),
    (Kind::IvfSq, "ivf_sq", "IVF_SQ", "vectors: 8 bits a number"),
    (Kind::IvfPq, "ivf_pq", "IVF_PQ", "vectors: 8 bits for several numbers, the smallest"),
    (Kind::IvfHnswFlat, "ivf_hnsw_flat", "IVF_HNSW_FLAT", "vectors: graphs over few partitions"),
    (Kind::IvfHnswSq, "ivf_hnsw_sq", "IVF_HNSW_SQ", "vectors: the same, 8 bits a number"),
    (Kind::IvfHnswPq, "ivf_hnsw_pq", "IVF_HNSW_PQ", "vectors: the same, 8 bits for several numbers"),
    (Kind::BTree, "btree", "BTree", "=, <, >, BETWEEN, IN of columns with many values, such as uid"),
    (Kind::Bitmap, "bitmap", "Bitmap", "=, IN of columns with few values, such as a language"),
    (Kind::ZoneMap, "zonemap", "ZoneMap", "ranges of columns that the rows' order follows"),
    (Kind::BloomFilter, "bloomfilter", "BloomFilter", "=, IN of columns with many values, smaller than btree"),
    (Kind::LabelList, "label_list", "LabelList", "array_has and the like of lists"),
    (Kind::FullText, "fts", "Inverted", "full_text(pool, text, 'words'), by BM25"),
    (Kind::NGram, "ngram", "NGram", "contains(text, 'abc') and regular expressions"),
];

impl Kind {
    pub fn parse(name: &str) -> Result<Kind> {
        let name = name.to_lowercase();
        let other = match name.as_str() {
            "inverted" | "full_text" => "fts",
            "bloom" => "bloomfilter",
            name => name,
        };
        let found = KINDS.iter().find(|(_, known, ..)| *known == other).map(|(kind, ..)| *kind);
        found.ok_or_else(|| Error::UnknownKind { name: name.clone() })
    }

    fn row(self) -> &'static (Kind, &'static str, &'static str, &'static str) {
        KINDS.iter().find(|(kind, ..)| *kind == self).expect("all are listed")
    }

    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The kind of Lance's word for it.
    pub(crate) fn of_lance(word: &str) -> Option<Kind> {
        KINDS.iter().find(|(_, _, known, _)| known.eq_ignore_ascii_case(word)).map(|(kind, ..)| *kind)
    }

    pub fn is_vector(self) -> bool {
        self.name().starts_with("ivf_")
    }

    pub(crate) fn has_graph(self) -> bool {
        self.name().starts_with("ivf_hnsw")
    }

    pub(crate) fn index_type(self) -> IndexType {
        match self {
            Kind::IvfFlat => IndexType::IvfFlat,
            Kind::IvfSq => IndexType::IvfSq,
            Kind::IvfPq => IndexType::IvfPq,
            Kind::IvfRq => IndexType::IvfRq,
            Kind::IvfHnswFlat => IndexType::IvfHnswFlat,
            Kind::IvfHnswSq => IndexType::IvfHnswSq,
            Kind::IvfHnswPq => IndexType::IvfHnswPq,
            Kind::BTree => IndexType::BTree,
            Kind::Bitmap => IndexType::Bitmap,
            Kind::ZoneMap => IndexType::ZoneMap,
            Kind::BloomFilter => IndexType::BloomFilter,
            Kind::LabelList => IndexType::LabelList,
            Kind::FullText => IndexType::Inverted,
            Kind::NGram => IndexType::NGram,
        }
    }
}

/// Numbers that the kinds of vector indexes take; each kind its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sizes {
    /// Bits a number (rq: 1 to 9), or a sub-vector (pq: 4 or 8).
    pub bits: Option<u8>,
    pub sub_vectors: Option<usize>,
    pub neighbours: Option<usize>,
    pub candidates: Option<usize>,
}

pub(crate) fn lance_metric(distance: Distance) -> MetricType {
    match distance {
        Distance::Cosine => MetricType::Cosine,
        Distance::Dot => MetricType::Dot,
        Distance::L2 => MetricType::L2,
    }
}

/// What Lance builds an index with: our centroids, and the partition of each row by a file of them.
pub(crate) fn vector_params(
    kind: Kind,
    distance: Distance,
    dim: usize,
    centroids: Arc<FixedSizeListArray>,
    partitions: String,
    sizes: Sizes,
) -> Result<VectorIndexParams> {
    let n = arrow::array::Array::len(centroids.as_ref());
    let failed = |e: lance::Error| Error::Lance { source: Box::new(e) };
    let mut ivf = IvfBuildParams::try_with_centroids(n, centroids).map_err(failed)?;
    ivf.precomputed_partitions_file = Some(partitions);
    let metric = lance_metric(distance);
    let hnsw = || {
        let mut params = HnswBuildParams::default();
        params.m = sizes.neighbours.unwrap_or(params.m);
        params.ef_construction = sizes.candidates.unwrap_or(params.ef_construction);
        params
    };
    let pq = || PQBuildParams {
        num_sub_vectors: sizes.sub_vectors.unwrap_or((dim / 8).max(1)),
        num_bits: usize::from(sizes.bits.unwrap_or(8)),
        ..PQBuildParams::default()
    };
    Ok(match kind {
        Kind::IvfFlat => VectorIndexParams::with_ivf_flat_params(metric, ivf),
        Kind::IvfSq => VectorIndexParams::with_ivf_sq_params(metric, ivf, SQBuildParams::default()),
        Kind::IvfPq => VectorIndexParams::with_ivf_pq_params(metric, ivf, pq()),
        Kind::IvfRq => VectorIndexParams::with_ivf_rq_params(metric, ivf, RQBuildParams::new(sizes.bits.unwrap_or(5))),
        Kind::IvfHnswFlat => VectorIndexParams::ivf_hnsw(metric, ivf, hnsw()),
        Kind::IvfHnswSq => VectorIndexParams::with_ivf_hnsw_sq_params(metric, ivf, hnsw(), SQBuildParams::default()),
        Kind::IvfHnswPq => VectorIndexParams::with_ivf_hnsw_pq_params(metric, ivf, hnsw(), pq()),
        kind => return Err(Error::UnknownKind { name: kind.name().to_string() }),
    })
}
