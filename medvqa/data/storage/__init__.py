"""Archives, hub repositories and large JSON files in; rows and image bytes out."""
