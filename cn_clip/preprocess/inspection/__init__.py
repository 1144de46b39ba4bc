"""What is in a data set: counted, decoded, compared and advised on in one pass over its pictures and captions.

`sources` finds the splits, `scan` looks at every row in worker processes and keeps `tables`, `collect` derives the
`report`; `summary` writes it for a terminal, `page` as HTML.
"""
