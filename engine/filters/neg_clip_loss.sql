-- about: keep the fraction of the pool whose pairs are most alike, measured against random batches of others
-- source: negCLIPLoss, Wang et al. 2024 (arXiv 2405.19547): 30 percent, temperature 0.01, ten batches of 32,768
-- param fraction: double = 0.3        -- of the pairs that have both embeddings
-- param batch_size: int = 32768       -- pairs a batch
-- param rounds: int = 10              -- batches that each pair is drawn into
-- param temperature: double = 0.01    -- the learned one of the model
-- param seed: int = 0                 -- of the random batches
SELECT uid FROM (
    SELECT uid, neg_clip_loss AS score, top_fraction(neg_clip_loss, $fraction) OVER () AS least
    FROM neg_clip_loss(pool, l14_img, l14_txt,
        batch_size => $batch_size, rounds => $rounds, temperature => $temperature, seed => $seed)
) AS ranked WHERE score >= least
