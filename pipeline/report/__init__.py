"""From finished cells to results.json, the table, figures and the page."""
