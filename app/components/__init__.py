"""Parts of pages that several pages share."""
