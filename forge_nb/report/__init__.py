"What people look at: intervals, figures, pages"
