// heed list: what can be named on the command line.
#include "cli/command.h"
#include "datasets/dataset.h"
#include "kernels/score.h"
#include "layers/models.h"
#include "train/train.h"

namespace heed::cli {

void add_list(CLI::App& app) {
  auto* command = app.add_subcommand("list", "Show the names of datasets, models, scores and normalisers");
  command->callback([] {
    std::vector<std::vector<std::string>> rows{{"kind", "name", "what it is"}};
    for (const auto& entry : datasets()) rows.push_back({"dataset", entry.name, entry.description});
    for (const auto& model : model_menu()) rows.push_back({"model", model.name, model.about});
    for (const auto& score : score_menu()) rows.push_back({"score", score.name, ""});
    for (const auto& normaliser : normaliser_menu()) rows.push_back({"normaliser", normaliser.name, ""});
    print(table(rows, false));
  });
}

}  // namespace heed::cli
