"What is read and how it is cleaned: readers, records, personal data, quality, near-duplicates"
