-- about: leave out the samples whose image looks like one of an evaluation set
-- source: perceptual hashes, as imagehash.phash makes them; tarn eval-images writes the table that is looked in
-- param threshold: int = 4      -- bits in which hashes may differ
SELECT uid FROM pool
WHERE uid NOT IN (SELECT uid FROM near_eval_images(threshold => $threshold))
