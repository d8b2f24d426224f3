-- about: keep the fraction of the pool whose images are most like one of the target images
-- source: NormSim with p = infinity, Wang et al. 2024 (arXiv 2405.19547), there |x.y|; combined there with neg_clip_loss
-- param targets: text = 'targets'    -- vector set: embeddings of the target images (ImageNet-1k, training)
-- param fraction: double = 0.2       -- of the pool, by similarity
SELECT uid FROM (
    SELECT uid, score, top_fraction(score, $fraction) OVER () AS least
    FROM (SELECT uid, max_similarity(l14_img, $targets) AS score FROM pool) AS scored
) AS ranked WHERE score >= least
