-- about: of samples whose images look the same keep one: that with the highest score, of equals the least uid
-- source: perceptual hashes of 64 bits as imagehash.phash makes them; computed at the first use and kept in images.phash
-- param threshold: int = 4                               -- bits in which hashes may differ
-- param keep: text = 'clip_l14_similarity_score'         -- column of scores
SELECT uid FROM pool
WHERE uid NOT IN (SELECT uid FROM near_duplicates(threshold => $threshold, keep => $keep))
