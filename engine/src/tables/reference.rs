//! The documentation of the table functions, for the reference.

use crate::functions::FunctionInfo;

fn info(name: &str, syntax: &str, description: &str, arguments: &[(&str, &str)], example: &str) -> FunctionInfo {
    FunctionInfo {
        name: name.into(),
        syntax: syntax.into(),
        description: description.into(),
        arguments: arguments.iter().map(|(name, about)| (name.to_string(), about.to_string())).collect(),
        example: example.into(),
    }
}

const ROWS: (&str, &str) = ("rows", "A table, or a query in parentheses.");

/// What stands where a table stands.
pub(crate) fn reference() -> Vec<FunctionInfo> {
    vec![
        info(
            "nearest",
            "nearest(rows, column, query, k [, within =>] [, metric =>] [, exact =>] [, nprobes =>] [, refine =>] [, index =>])",
            "The `k` rows nearest to a vector, nearest first searched, and how far each is as the column `_distance`: through an index where there is one over the column that goes by the same distance, otherwise exactly. Conditions of the same SELECT hold before the search, so that there are `k` rows whenever as many match: all but those on `_distance` where it is the only relation, otherwise those whose columns are written with its name. After another relation, whose columns the query may name, it finds the nearest for each of its rows, which share one pass: `FROM prompts p CROSS JOIN LATERAL nearest(...) n`, `JOIN LATERAL nearest(...) n ON true`, or a comma. Rows without a vector are not found; those of equal distance come in the order in which the pool has them. `ORDER BY cosine_distance(column, constant) LIMIT k` (and `cosine_similarity`, `inner_product`, `l2_distance`) is the same search, visible in EXPLAIN; `SET tarn.exact = true` keeps all searches off the indexes, `SET tarn.nprobes` and `SET tarn.refine` are their defaults.",
            &[
                ROWS,
                ("column", "A column of vectors."),
                (
                    "query",
                    "A vector of the same length: a list, a parameter, `embedding(...)`, `embed_text(...)`, `embed_image(...)`, or beside another relation an expression of its columns.",
                ),
                ("k", "How many; may be left out where `within` is given, and then the search is exact."),
                ("within", "How far they may be."),
                ("metric", "`cosine` (1 less the cosine, the default), `l2` (not squared), or `dot` (1 less the inner product)."),
                ("exact", "Whether to look at everything."),
                (
                    "nprobes",
                    "Partitions of the index that are looked into; by default the index's own (`tarn index POOL check NAME --set`).",
                ),
                ("refine", "Candidates looked at again by their full vectors, in multiples of `k`."),
                ("index", "The name of the index, where there are several."),
            ],
            "SELECT p.id, n.uid, n._distance FROM vectors p, LATERAL nearest(pool, l14_img, p.vector, 10) n WHERE p.name = 'prompts' AND n.original_width > 256",
        ),
        info(
            "full_text",
            "full_text(rows, column, words [, match =>] [, k =>])",
            "The rows whose text holds the words, and how well as the column `_score` (BM25, higher is better), through a full-text index where there is one. Conditions of the same SELECT hold before, as with `nearest`.",
            &[
                ROWS,
                ("column", "A column of texts."),
                ("words", "What is looked for."),
                ("match", "`any` of the words (the default), `all` of them, or the `phrase` (needs an index with positions)."),
                ("k", "The best so many only."),
            ],
            "SELECT uid, text, _score FROM full_text(pool, text, 'red dog', match => 'all') ORDER BY _score DESC LIMIT 10",
        ),
        info(
            "neg_clip_loss",
            "neg_clip_loss(rows, image, text [, batch_size =>] [, rounds =>] [, temperature =>] [, seed =>])",
            "The rows that have both vectors, and their negCLIPLoss as the column `neg_clip_loss`: s_ii - τ/2 · (ln Σ_j exp(s_ij/τ) + ln Σ_j exp(s_ji/τ)) over the cosines s of random batches, the mean over the batches that the pair is drawn into; higher is better (Wang et al. 2024, arXiv 2405.19547). Batches are of one size, and sums are scaled to `batch_size` pairs. Costs two products of vectors a pair and another of its batch.",
            &[
                ROWS,
                ("image", "A column of vectors."),
                ("text", "A column of vectors of the same length."),
                ("batch_size", "Pairs a batch, 32,768."),
                ("rounds", "Batches that each pair is drawn into, 10."),
                ("temperature", "τ, 0.01."),
                ("seed", "Of the random batches, 0."),
            ],
            "SELECT uid, neg_clip_loss FROM neg_clip_loss(pool, l14_img, l14_txt, rounds => 3)",
        ),
        info(
            "semantic_duplicates",
            "semantic_duplicates(rows, column, set [, threshold =>] [, keep =>])",
            "The rows that SemDeDup drops (Abbas et al. 2023): within each cluster those whose cosine with one before them is above the threshold, dropped or not; with the uid of the one that is most alike as `like`, and `similarity`.",
            &[
                ROWS,
                ("column", "A column of vectors."),
                ("set", "The name of a vector set: the clusters' centroids (`tarn vectors POOL kmeans`)."),
                ("threshold", "A cosine, 0.95."),
                (
                    "keep",
                    "What comes first: `hard`, the least like its centroid (as published, the default), `easy`, the most, or the name of a column of numbers, the highest. Of equals the row that the pool has first.",
                ),
            ],
            "SELECT uid, \"like\", similarity FROM semantic_duplicates(pool, l14_img, 'centroids', threshold => 0.9)",
        ),
        info(
            "near_duplicates",
            "near_duplicates([threshold =>] [, keep =>])",
            "The images whose perceptual hash (64 bits, as `imagehash.phash` defines it) differs in at most `threshold` bits from that of one that is kept: `uid`, `like`, `distance`. Hashes are computed when they are first needed, and kept as `images.phash`.",
            &[
                ("threshold", "Bits, 4."),
                ("keep", "The name of a column of numbers of the pool: the highest is kept, of equals, and without it, the least uid."),
            ],
            "SELECT count(*) FROM near_duplicates(threshold => 6)",
        ),
        info(
            "near_eval_images",
            "near_eval_images([threshold =>])",
            "The images of the pool whose perceptual hash differs in at most `threshold` bits from that of an evaluation image, each with the nearest: `uid`, `task`, `sample`, `distance`. `tarn eval-images` writes the table `eval_images` that it looks in; hashes of the pool's images are computed when they are first needed.",
            &[("threshold", "Bits, 4.")],
            "SELECT task, count(*) FROM near_eval_images(threshold => 6) GROUP BY task",
        ),
    ]
}
