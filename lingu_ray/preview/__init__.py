"""Data as a run will train on it, looked at before training: some rows of each source, read here and now, without Ray.

spread       items spread over a source whose length is not known
rows         rows and rejects of a source, as the corpus's build makes them
read         the sources read: rows counted and measured, some of them token by token
sources      what was read of the sources: counts, lengths, rejects, examples
roles        what each token is for, in the loss and to the teacher
tokens       tokens as readable text
words        what is said about a run, a source, a row
terminal     the preview in a terminal
blocks       images in a terminal
page         the preview as an HTML page
knowledge    how well student and teacher know the answers, by what each is given
knowledge_lines  that in a terminal
"""
