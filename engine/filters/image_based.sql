-- about: English captions, and images whose cluster also holds one of the target images
-- source: DataComp baselines, image_based
-- param centroids: text = 'centroids'    -- vector set: the pool's clusters
-- param targets: text = 'targets'        -- vector set: embeddings of the target images (ImageNet-1k, training)
SELECT uid FROM pool
WHERE fasttext_token_count(text) > 1
  AND char_length(text) > 5
  AND lang_fasttext(text) = 'en'
  AND nearest_centroid(l14_img, $centroids) IN (
      SELECT nearest_centroid(vector, $centroids) FROM vectors WHERE name = $targets
  )
