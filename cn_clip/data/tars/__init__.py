"""Tar shards of samples: pictures and captions whose members share a name, as img2dataset and webdataset write them."""
