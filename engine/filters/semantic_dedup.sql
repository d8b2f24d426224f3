-- about: of samples whose images mean the same keep one, cluster by cluster
-- source: SemDeDup, Abbas et al. 2023: 50,000 clusters, drops what is nearer than the threshold to one before it
-- param centroids: text = 'centroids'      -- vector set: tarn vectors POOL kmeans --column l14_img -k 50000
-- param threshold: double = 0.95           -- cosine above which two are the same; published as 1 - epsilon
-- param keep: text = 'hard'                -- hard: the least like its centroid first, easy: the most, or a column of scores
SELECT uid FROM pool
WHERE uid NOT IN (SELECT uid FROM semantic_duplicates(pool, l14_img, $centroids, threshold => $threshold, keep => $keep))
