-- about: English by CLD3 and a CLIP B/32 score of at least 0.28, as LAION-2B was made
-- source: DataComp baselines, laion2b
-- param threshold: double = 0.28     -- of the B/32 score
SELECT uid FROM pool
WHERE clip_b32_similarity_score >= CAST($threshold AS REAL)
  AND clip_b32_similarity_score <= CAST('Infinity' AS REAL) -- NaN sorts above it
  AND lang(text) = 'en'
