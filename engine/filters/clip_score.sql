-- about: keep the fraction of the pool with the highest CLIP score, or all samples from a threshold up
-- source: DataComp baselines, clip_score
-- param arch: text in ('l14', 'b32') = 'l14'     -- the CLIP that scored the pool
-- param fraction: double = 0.3                   -- of the pool, by score
-- param threshold: double = NULL                 -- a score; where given, the fraction does not count
WITH scored AS (
    SELECT uid, CASE WHEN $arch = 'l14' THEN clip_l14_similarity_score ELSE clip_b32_similarity_score END AS score
    FROM pool
)
SELECT uid FROM scored
WHERE score >= CAST(coalesce($threshold, (SELECT top_fraction(score, $fraction) FROM scored)) AS REAL)
  AND score <= CAST('Infinity' AS REAL) -- NaN sorts above it
