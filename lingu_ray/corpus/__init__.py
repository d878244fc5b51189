"""The corpus: sources become one mixed, ordered set of rows on disk, which workers read, encode and batch.

row         one conversation with its encoded images

files       of a source; patterns, split_names, card: which are meant; suffixes: what is a picture
splits      files cut into parts, a task for each; json_array: where an array's records are
readers     from bytes to records, by arrow, compression, tar and labels
formats     from records to conversations, by turns, contents, record and record_keys; beside: what stands beside one
load_image  the bytes that a record's image means, by images and named_file
check       whether a conversation is a good row

plan        what a corpus is made of, and where it is; fingerprint: by which it is found again
build       with Ray Data, by normalize, counts and finished
order       the positions of each row, by mix
store       the corpus on disk, or in a bucket; pictures: what is asked about those in it

encode      from a row to ids, masks and pixels: rendering, chat_template, answers, whole_tokens, image_tokens
processor   the student's, as a run has saved it
read        the rows of each step, ahead of need; encoding_pool: its threads
batch       micro-batches of samples
"""
