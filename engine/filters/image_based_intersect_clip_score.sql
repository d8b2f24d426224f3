-- about: what both image_based and clip_score keep
-- source: DataComp baselines, image_based_intersect_clip_score
-- param arch: text in ('l14', 'b32') = 'l14'     -- the CLIP that scored the pool
-- param fraction: double = 0.3                   -- of the pool, by score
-- param threshold: double = NULL                 -- a score; where given, the fraction does not count
-- param centroids: text = 'centroids'            -- vector set: the pool's clusters
-- param targets: text = 'targets'                -- vector set: embeddings of the target images
SELECT uid FROM filter('image_based', centroids => $centroids, targets => $targets)
WHERE uid IN (SELECT uid FROM filter('clip_score', arch => $arch, fraction => $fraction, threshold => $threshold))
