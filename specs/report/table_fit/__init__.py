"""The page of a table's fit: `page.render_table_fit`."""
