-- about: of samples whose image files are the same keep one: that with the highest L/14 score, of equals the least uid
-- source: SHA-256 of the images as they were ingested; samples without an image are kept
SELECT uid FROM pool
WHERE uid NOT IN (
    SELECT uid FROM (
        SELECT i.uid, row_number() OVER (
            PARTITION BY i.sha256 ORDER BY p.clip_l14_similarity_score DESC NULLS LAST, i.uid) AS place
        FROM images i JOIN pool p ON p.uid = i.uid WHERE i.sha256 IS NOT NULL
    ) AS ranked WHERE place > 1
)
