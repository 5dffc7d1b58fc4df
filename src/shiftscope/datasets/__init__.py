"""Images: where they come from, how they are read, and which of them suit a model.

- ``folders``: read image files and parquet files of a folder.
- ``hub``: download a data set from the Hugging Face hub (extra ``hub``).
- ``sources``: decode a data set once, from memory, a folder or the hub, and cache it.
- ``dataset``: split it into training, validation and test images, on a canvas.
- ``preprocessing``: how images are prepared for a model, and where these settings come from.
- ``photos``: photos of any size, scaled and cropped, a few at a time.
- ``photo_origins``: open photos of a folder, of its parquet files or of the hub.
- ``images``: choose images that suit a model, and read them a block at a time.
"""
