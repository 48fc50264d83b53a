"How training rows and exam items are made from facts: endpoint, paraphrases, filters, rows"
