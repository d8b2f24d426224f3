-- about: English captions of more than two words and five characters; images of at least 200 pixels on the smaller side, no longer than 3 to 1
-- source: DataComp baselines, basic_filter
SELECT uid FROM pool
WHERE original_width >= 200 AND original_height >= 200
  AND original_width <= 3 * original_height AND original_height <= 3 * original_width
  AND char_length(text) > 5
  AND word_count(text) > 2
  AND lang_fasttext(text) = 'en'
