-- about: a random fraction of the pool, the same for the same seed whatever the pool's order
-- source: DataComp baselines, random_subset
-- param fraction: double in (0..1) = 0.1     -- of the pool
-- param seed: int = 0              -- other seeds draw other samples
SELECT uid FROM pool WHERE sample_hash(uid, $seed) < $fraction
