"""The corpus: a mixed, ordered set of rows on disk, built from sources; workers read, encode and batch its rows.

row         one conversation with its encoded images

files       finds the files of a source, with data_files, patterns, split_names, card and suffixes
splits      cuts files into parts, a task for each; json_array cuts an array
readers     turn bytes into records, with arrow, csv_records, compression, tar and labels
formats     turn records into conversations, with turns, contents, record, record_keys, beside, fill and words
load_image  loads the image that a record refers to, with images, image_folder and named_file
check       decides whether a conversation is a good row

plan        says what a corpus is made of and where it is; fingerprint identifies it
build       builds it with Ray Data, with normalize, counts and finished
order       computes the positions of each row, with mix
store       holds it on disk or in a bucket; pictures: its pictures with what is asked about them

encode      turns a row into ids, masks and pixels: rendering, chat_template, answers, whole_tokens, image_tokens
processor   loads the student's processor
read        reads the rows of each step ahead of need; encoding_pool: its threads
batch       makes micro-batches of samples
"""

from lingu_ray.corpus import arrow as arrow  # no file that is read by any module of the room unpickles objects
