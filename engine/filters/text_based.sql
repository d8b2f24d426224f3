-- about: English captions that name something of a list of synsets
-- source: DataComp baselines, text_based
-- param synsets: text = 'imagenet21k_wordnet_ids'    -- the list: a file NAME.txt among the resources
SELECT uid FROM pool
WHERE lang_fasttext(text) = 'en' AND mentions_synset(text, $synsets)
