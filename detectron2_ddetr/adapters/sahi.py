"""For `sahi`: a model that its sliced prediction, command line and viewers can call."""

import numpy as np
from sahi.models.base import DetectionModel
from sahi.prediction import ObjectPrediction
from sahi.utils.compatibility import fix_full_shape_list, fix_shift_amount_list

from ..config import load_config
from ..predictor import Predictor


class PredictorForSahi(DetectionModel):
    """
    ``PredictorForSahi(model=Predictor.from_run("output/first"), confidence_threshold=0.4)``

    Instead of `model`, `config_path` and `model_path` may say what MODEL.WEIGHTS and its config
    are. Sizes are those of the config: `image_size` is not looked at. Category ids are class
    numbers. For slices alone there is ``Predictor(tiles=640)``, which knows what a border has cut.
    """

    def load_model(self) -> None:
        opts = ["MODEL.WEIGHTS", self.model_path, "MODEL.DEVICE", str(self.device)]
        self.set_model(Predictor(load_config(self.config_path, opts)))

    def set_model(self, model: Predictor, **kwargs) -> None:
        self.model = model
        if self.category_mapping is None:
            names = model.class_names or map(str, range(model.mapper.num_classes))
            self.category_mapping = {str(label): name for label, name in enumerate(names)}

    def perform_inference(self, image: np.ndarray) -> None:
        """`image` is (H, W, 3) uint8 RGB."""
        self._original_predictions = self.model.detect([image], ["a slice"])

    @property
    def category_names(self) -> list[str]:
        return list(self.category_mapping.values())

    def _create_object_prediction_list_from_original_predictions(
        self,
        shift_amount_list: list | None = None,
        full_shape_list: list | None = None,
    ) -> None:
        (found,) = self._original_predictions
        found = found[found.scores >= self.confidence_threshold]
        columns = (found.pred_boxes.tensor, found.scores, found.pred_classes)
        common = {"shift_amount": fix_shift_amount_list(shift_amount_list)[0]}
        if full_shape_list:
            common["full_shape"] = fix_full_shape_list(full_shape_list)[0]
        self._object_prediction_list_per_image = [
            [
                ObjectPrediction(box, label, self.category_mapping[str(label)], score=s, **common)
                for box, s, label in zip(*(column.tolist() for column in columns))
            ]
        ]
