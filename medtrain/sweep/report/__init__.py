"""What a sweep found: report.html, tables and pictures, made from its study at any time."""
